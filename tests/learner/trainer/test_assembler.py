"""Facts in, turns out: the tables of docs/semantics.md."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.learner.trainer.facts import Journal, make_domain

from turnwise.v1 import dialogue_pb2
from turnwise_actor.policy import Domain
from turnwise_learner.trainer.assembler import Assembler
from turnwise_learner.trainer.turns import Change, TurnRecord


def assemble(journal: Journal) -> tuple[dict[str, TurnRecord], list[Change]]:
    assembler = Assembler(journal.domain, journal.dialogue, journal.domain_json)
    changes = assembler.assemble(journal.rows)
    turns: dict[str, TurnRecord] = {}
    for change in changes:
        turns |= {record.decision_id: record for record in change.records}
    return turns, changes


def learned(turn: TurnRecord) -> tuple[Any, ...]:
    return turn.action, turn.reward, turn.successor, turn.terminated, turn.breaks_return


GREET, ASK, BYE, NONE = 0, 1, 2, -1

# facts -> {decision: (action, reward, successor, terminated, breaks_return)}
TABLE: dict[str, tuple[float, Callable[[Journal], object], dict[str, tuple[Any, ...]]]] = {
    "a decision that nobody met is a state, nothing more": (
        0.0,
        lambda j: j.decided("a"),
        {"a": (NONE, None, "", False, True)},
    ),
    "a reward confirms its decision and is learned": (
        0.0,
        lambda j: (j.decided("a"), j.feedback("a", reward=-1)),
        {"a": (GREET, -1.0, "", False, False)},
    ),
    "a reward that comes before its decision waits for it": (
        0.0,
        lambda j: (j.feedback("a", reward=1), j.decided("a", action="ask")),
        {"a": (ASK, 1.0, "", False, False)},
    ),
    "the next act confirms the decision; unrated at gamma 0 is skipped": (
        0.0,
        lambda j: (j.decided("a"), j.decided("b", "a")),
        {"a": (GREET, None, "b", False, True), "b": (NONE, None, "", False, True)},
    ),
    "unrated at gamma 0.9 is neutral": (
        0.9,
        lambda j: (j.decided("a"), j.decided("b", "a")),
        {"a": (GREET, 0.0, "b", False, False), "b": (NONE, None, "", False, True)},
    ),
    "of one teacher the newest revision counts, whenever it comes": (
        0.0,
        lambda j: (
            j.decided("a"),
            j.feedback("a", revision=5, reward=1),
            j.feedback("a", revision=2, reward=-1),
        ),
        {"a": (GREET, 1.0, "", False, False)},
    ),
    "across teachers the mean counts": (
        0.0,
        lambda j: (j.decided("a"), j.feedback("a", "ann", reward=1), j.feedback("a", "bob", reward=0)),
        {"a": (GREET, 0.5, "", False, False)},
    ),
    "a retraction takes this teacher's feedback back, no other's": (
        0.0,
        lambda j: (
            j.decided("a"),
            j.feedback("a", "ann", reward=1),
            j.feedback("a", "bob", reward=-1),
            j.feedback("a", "ann", retraction=True),
        ),
        {"a": (GREET, -1.0, "", False, False)},
    ),
    "a corrected turn gives the wrong action no target": (
        0.0,
        lambda j: (j.decided("a"), j.feedback("a", correction="bye")),
        {"a": (GREET, None, "", False, True)},
    ),
    "a corrected and rated turn has both": (
        0.0,
        lambda j: (j.decided("a"), j.feedback("a", correction="bye"), j.feedback("a", reward=-1)),
        {"a": (GREET, -1.0, "", False, True)},
    ),
    "an overridden turn trains the action that went out and breaks returns": (
        0.0,
        lambda j: (j.decided("a"), j.delivered("a", "OVERRIDDEN", "bye"), j.feedback("a", reward=1)),
        {"a": (BYE, 1.0, "", False, True)},
    ),
    "a dropped turn is never trained on": (
        0.9,
        lambda j: (j.decided("a"), j.delivered("a", "DROPPED"), j.feedback("a", reward=1)),
        {"a": (NONE, None, "", False, True)},
    ),
    "the successor is the confirmed child, not the retry that nobody met": (
        0.0,
        lambda j: (
            j.decided("a"),
            j.decided("b1", "a"),
            j.decided("b2", "a"),
            j.feedback("b1", reward=1),
            j.feedback("a", reward=1),
        ),
        {
            "a": (GREET, 1.0, "b1", False, False),
            "b1": (GREET, 1.0, "", False, False),
            "b2": (NONE, None, "", False, True),
        },
    ),
    "a terminated dialogue has no value after its last turn": (
        0.9,
        lambda j: (j.decided("a"), j.feedback("a", reward=1), j.ended("a", terminated=True)),
        {"a": (GREET, 1.0, "", True, False)},
    ),
    "a truncated one goes on in the last state given": (
        0.9,
        lambda j: (j.decided("a"), j.feedback("a", reward=1), j.ended("a", False, last_text="then")),
        {"a": (GREET, 1.0, "a:last", False, False), "a:last": (NONE, None, "", False, False)},
    ),
    "a late turn reopens an ended dialogue": (
        0.9,
        lambda j: (j.decided("a"), j.ended("a", terminated=True), j.decided("b", "a")),
        {"a": (GREET, 0.0, "b", False, False), "b": (NONE, None, "", False, True)},
    ),
    "feedback on the whole dialogue goes to its last turn at gamma 0.9": (
        0.9,
        lambda j: (
            j.decided("a"),
            j.decided("b", "a"),
            j.ended("b", terminated=True),
            j.feedback("", reward=1),
        ),
        {"a": (GREET, 0.0, "b", False, False), "b": (GREET, 1.0, "", True, False)},
    ),
    "feedback on the whole dialogue is not learned at gamma 0": (
        0.0,
        lambda j: (j.decided("a"), j.ended("a", terminated=True), j.feedback("", reward=1)),
        {"a": (GREET, None, "", True, True)},
    ),
    "evaluation never enters replay": (
        0.0,
        lambda j: (j.decided("a", mode=dialogue_pb2.EVALUATE), j.feedback("a", reward=1)),
        {},
    ),
    "an unrecorded decision never enters replay": (
        0.0,
        lambda j: (j.decided("a", recorded=False), j.feedback("a", reward=1)),
        {},
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    gamma, say, wanted = TABLE[name]
    journal = Journal(make_domain(gamma=gamma))
    say(journal)
    turns, _ = assemble(journal)
    assert {decision: learned(turn) for decision, turn in turns.items()} == wanted


def test_lessons_are_counted_when_they_change_something() -> None:
    journal = Journal(make_domain())
    journal.decided("a")
    journal.feedback("a", revision=3, reward=1)
    journal.feedback("a", revision=2, reward=-1)  # older: changes nothing
    journal.feedback("a", revision=4, reward=1)  # the same value again
    journal.feedback("a", revision=5, comment_only=True)
    journal.feedback("a", revision=6, retraction=True)
    _, changes = assemble(journal)
    assert [change.lesson for change in changes] == [False, True, False, False, False, True]


def test_turns_and_rated_turns_are_counted_and_taken_back() -> None:
    journal = Journal(make_domain())
    journal.decided("a")
    journal.decided("b", "a")
    journal.feedback("b", reward=1)
    journal.feedback("b", retraction=True)
    _, changes = assemble(journal)
    assert sum(change.counters.get("turns", 0) for change in changes) == 2
    assert [change.counters.get("rated_turns", 0) for change in changes] == [0, 0, 1, -1]


def test_a_second_confirmed_child_is_a_fork() -> None:
    journal = Journal(make_domain())
    journal.decided("a")
    journal.decided("b", "a")
    journal.feedback("b", reward=1)
    journal.decided("c", "a")
    journal.feedback("c", reward=1)
    turns, changes = assemble(journal)
    assert sum(change.counters.get("forks", 0) for change in changes) == 1
    assert turns["a"].successor == "b"
    assert turns["c"].reward == 1.0


def test_a_turn_waits_for_its_window() -> None:
    waiting = Domain.from_mapping(
        {
            "name": "desk",
            "state": {"text": {"encoder": "hashing", "size": 64}},
            "actions": [{"id": "greet", "say": "x"}, {"id": "ask", "say": "y"}],
            "rewards": {"wait": "10s"},
        }
    )
    journal = Journal(waiting)
    journal.decided("a", time_ms=5_000)
    journal.feedback("a", reward=1)
    _, changes = assemble(journal)
    assert [change.due_ms for change in changes] == [15_000, 15_000]


def test_the_mask_of_a_fact_is_read() -> None:
    journal = Journal(make_domain())
    journal.decided("a", allowed=b"\x05")
    turns, _ = assemble(journal)
    assert turns["a"].allowed.tolist() == [True, False, True]


FACTS: list[Callable[[Journal], object]] = [
    lambda j: j.decided("a"),
    lambda j: j.decided("b", "a", action="ask", text="next"),
    lambda j: j.decided("c", "b", action="bye", text="last"),
    lambda j: j.feedback("a", "ann", 1, reward=-1),
    lambda j: j.feedback("a", "ann", 2, correction="ask"),
    lambda j: j.feedback("a", "bob", 3, reward=0.5),
    lambda j: j.feedback("b", "ann", 4, reward=1),
    lambda j: j.feedback("b", "ann", 5, retraction=True),
    lambda j: j.delivered("b", "OVERRIDDEN", "bye"),
    lambda j: j.ended("c", True),
]


@settings(max_examples=200, deadline=None)
@given(st.permutations(range(len(FACTS))), st.sampled_from([0.0, 0.9]))
def test_any_order_of_facts_gives_the_same_turns(order: list[int], gamma: float) -> None:
    journals = Journal(make_domain(gamma=gamma)), Journal(make_domain(gamma=gamma))
    for fact in FACTS:
        fact(journals[0])
    for index in order:
        FACTS[index](journals[1])
    one, other = (assemble(journal)[0] for journal in journals)
    assert {k: learned(v) for k, v in one.items()} == {k: learned(v) for k, v in other.items()}
    assert {k: sorted(v.corrections, key=str) for k, v in one.items()} == {
        k: sorted(v.corrections, key=str) for k, v in other.items()
    }


@settings(max_examples=50, deadline=None)
@given(st.integers(0, len(FACTS)))
def test_a_restart_between_any_two_facts_changes_nothing(cut: int) -> None:
    journal = Journal(make_domain(gamma=0.9))
    for fact in FACTS:
        fact(journal)
    whole = Assembler(journal.domain, journal.dialogue, journal.domain_json).assemble(journal.rows)
    before = Assembler(journal.domain, journal.dialogue, journal.domain_json).assemble(journal.rows[:cut])
    after = Assembler(journal.domain, journal.dialogue, journal.domain_json).assemble(journal.rows[cut:])
    told = [[(r.decision_id, learned(r)) for r in change.records] for change in before + after]
    assert told == [[(r.decision_id, learned(r)) for r in change.records] for change in whole]
    assert [c.lesson for c in before + after] == [c.lesson for c in whole]


def test_many_dialogues_in_little_memory_fold_again_from_the_journal() -> None:
    journal = Journal(make_domain())
    for i in range(20):
        journal.decided(f"a{i}", dialogue_id=f"d{i}")
    for i in range(20):
        journal.feedback(f"a{i}", reward=1, dialogue_id=f"d{i}")
    assembler = Assembler(journal.domain, journal.dialogue, journal.domain_json, max_dialogues=3)
    turns = list(itertools.chain.from_iterable(c.records for c in assembler.assemble(journal.rows)))
    assert sum(turn.reward == 1.0 for turn in turns) == 20
