"""The simulate verb over a fake actor."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from turnwise.testing import FakeActor
from turnwise_cli.verbs import cli

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart/domain.yaml"


@pytest.fixture
def actor():
    with FakeActor(["greet", "bye"], slots={"vip": bool, "intent": ["a", "b"]}, features=3) as fake:
        yield fake


def simulate(actor, *options):
    result = CliRunner().invoke(cli, ["simulate", actor.address, *options], standalone_mode=False)
    return result.return_value, json.loads(result.stdout.splitlines()[-1])


def test_people_talk_rate_and_leave(actor):
    code, told = simulate(actor, "--dialogues", "12", "--at-once", "4")
    assert code == 0
    assert told["dialogues"] == 12 == len(actor.ends)
    assert told["turns"] == len(actor.received) == told["ratings"] == len(actor.feedback)
    assert {"mean", "p50", "p99", "p99.9", "max"} <= set(told["act_ms"])
    assert {given.value for given in actor.feedback} == {1.0, -1.0}


def test_one_phrase_has_one_right_answer(actor):
    simulate(actor, "--dialogues", "10", "--at-once", "1", "--phrases", "3")
    rewards = {}
    for act, given in zip(actor.received, actor.feedback, strict=True):  # the fake always answers the same
        rewards.setdefault(act.text, set()).add(given.value)
    assert 1 <= len(rewards) <= 3
    assert all(len(values) == 1 for values in rewards.values())


def test_errors_are_counted_and_the_others_go_on():
    def fail_late(act):
        if act.index == 2:
            raise ValueError("no third turn")
        return "greet"

    with FakeActor(["greet", "bye"], fail_late) as actor:
        code, told = simulate(actor, "--dialogues", "8", "--at-once", "1")
    assert code == 1
    assert told["errors"]["ServerFault"] > 0
    assert told["dialogues"] + told["errors"]["ServerFault"] == 8


def test_the_rate_is_kept(actor):
    _, told = simulate(actor, "--dialogues", "5", "--rate", "20", "--rated", "0")
    assert told["ratings"] == 0
    assert told["turns_per_s"] <= 25


def test_a_bot_that_stands_still_is_felt_by_every_turn_that_was_due():
    def stand_still_once(act):
        if act.index == 1:
            time.sleep(1.0)
        return "greet"

    with FakeActor(["greet", "bye"], stand_still_once) as slow:
        _, told = simulate(slow, "--dialogues", "40", "--at-once", "1", "--rate", "50", "--rated", "0")
    assert told["act_ms"]["p50"] > 500


def test_no_dialogue_begins_after_the_duration(actor):
    code, told = simulate(actor, "--duration", "1", "--at-once", "2")
    assert code == 0
    assert 1 <= told["seconds"] < 10
    assert told["dialogues"] == len(actor.ends) > 2


def test_all_figures_are_written_with_the_distributions(actor, tmp_path):
    _, told = simulate(actor, "--dialogues", "9", "--summary", str(tmp_path / "told.json"))
    written = json.loads((tmp_path / "told.json").read_text())
    assert {**written, **told} == written
    assert written["act_distribution"][-1]["count"] == told["turns"]
    assert written["feedback_distribution"][-1]["count"] == told["ratings"]


def test_a_bot_of_its_own_or_one_that_runs_but_not_both(actor):
    ran = CliRunner().invoke(cli, ["simulate", actor.address, "--domain", str(QUICKSTART)])
    assert ran.exit_code == 2
    assert "either --domain or the ADDRESS" in ran.output
