"""One of every fault, while people talk; and the reckoning itself, on journals made wrong."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chaos import ACTORS, Plan, measure, small_spool
from frontends import ClientLog
from reckoning import account
from turnwise.v1 import training_pb2
from turnwise_learner.journal import KINDS, Row

ONE_OF_EACH = Plan(kills=1, others=1, stop_s=2, away_s=4, disk_full_s=2)


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_doubled_whatever_is_killed_stopped_cut_filled_or_torn(tmp_path: Path) -> None:
    with small_spool(tmp_path) as small_disk:
        report = asyncio.run(measure(ONE_OF_EACH, 1, tmp_path, small_disk))
    lost = {key: report.ratios[key] for key in ("lost_feedback", "lost_turns", "doubled")}
    assert lost == dict.fromkeys(lost, 0.0), report.line()
    assert report.figures["failures"] == [], report.line()
    assert report.figures["acknowledged_feedback"] > 10 * ACTORS, json.dumps(report.figures)


def row(seq: int, dialogue: str = "d", **kind: Any) -> Row:
    fact = training_pb2.Fact(key=str(seq), dialogue_id=dialogue, **kind)
    return Row(seq, dialogue, KINDS[str(fact.WhichOneof("kind"))], 0, fact, "")


def decided(seq: int, decision: str, parent: str = "") -> Row:
    return row(seq, decided=training_pb2.Decided(decision_id=decision, parent_id=parent))


def rated(seq: int, decision: str, reward: float = 1.0) -> Row:
    return row(seq, feedback=training_pb2.Feedback(decision_id=decision, reward=reward))


LOG = ClientLog(turns={"a": "d", "b": "d"}, ratings={"b": 1.0}, attempts=Counter("b"))
WHOLE = [decided(1, "a"), decided(2, "b", "a"), rated(3, "b")]


def test_a_whole_journal_has_nothing_to_find() -> None:
    found = account(LOG, WHOLE)
    assert (found.lost_feedback, found.lost_turns, found.doubled) == ([], [], [])


def test_a_turn_or_a_rating_that_is_missing_is_found() -> None:
    found = account(LOG, WHOLE[:1])
    assert (found.lost_feedback, found.lost_turns) == (["b"], ["b"])


def test_a_rating_with_another_value_counts_as_lost() -> None:
    assert account(LOG, [*WHOLE[:2], rated(3, "b", -1.0)]).lost_feedback == ["b"]


def test_a_fact_that_is_there_twice_is_found() -> None:
    assert account(LOG, [*WHOLE, decided(4, "a")]).doubled == ["a"]
    assert account(LOG, [*WHOLE, rated(4, "b")]).doubled == ["b"]


def test_a_rating_that_was_given_again_after_an_error_is_no_double() -> None:
    again = ClientLog(turns=LOG.turns, ratings=LOG.ratings, attempts=Counter("bb"))
    assert account(again, [*WHOLE, rated(4, "b")]).doubled == []
    assert account(again, [*WHOLE, rated(4, "b"), rated(5, "b")]).doubled == ["b"]


def test_a_turn_that_the_journal_names_as_not_recorded_is_not_lost() -> None:
    naming = row(2, ended=training_pb2.Ended(decision_id="a"))
    naming.fact.unrecorded.append("b")
    found = account(LOG, [WHOLE[0], naming, WHOLE[2]])
    assert (found.lost_turns, found.unrecorded) == ([], ["b"])
    assert found.unlearned(0) == ""


def test_a_rating_that_the_trainer_has_not_met_is_found() -> None:
    found = account(LOG, WHOLE)
    assert found.unlearned(1) == ""
    assert "0 of 1" in found.unlearned(0)


def test_two_confirmed_answers_to_one_turn_are_found() -> None:
    twice = ClientLog(turns={"a": "d", "b": "d", "c": "d"})
    assert account(twice, [*WHOLE, decided(4, "c", "a")]).doubled == ["a in d"]
