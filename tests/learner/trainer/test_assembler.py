"""Facts in, turns out; what the tables of docs/semantics.md (test_semantics.py) do not say."""

import dataclasses
import itertools
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learner.trainer.facts import Journal, make_domain
from turnwise.v1 import dialogue_pb2
from turnwise_learner.journal import Row
from turnwise_learner.trainer.assembler import Assembler, DialogueFold
from turnwise_learner.trainer.turns import Change, TurnRecord


def assemble(journal: Journal) -> tuple[dict[str, TurnRecord], list[Change]]:
    assembler = Assembler(journal.domain, journal.dialogues, journal.domain_json)
    changes = assembler.assemble(journal.rows)
    turns: dict[str, TurnRecord] = {}
    for change in changes:
        turns |= {record.decision_id: record for record in change.records}
    return turns, changes


def learned(turn: TurnRecord) -> tuple[Any, ...]:
    return turn.action, turn.reward, turn.successor, turn.terminated, turn.breaks_return


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


def test_a_turn_rated_and_corrected_is_two_lessons_in_either_order() -> None:
    journal = Journal(make_domain())
    for name, kinds in (("a", ("reward", "correction")), ("b", ("correction", "reward"))):
        journal.decided(name, dialogue_id=name)
        for kind in kinds:
            journal.feedback(name, dialogue_id=name, **{kind: -1 if kind == "reward" else "ask"})
    _, changes = assemble(journal)
    assert [change.lesson for change in changes] == 2 * [False, True, True]


def test_a_turn_kept_folded_costs_less_than_its_observation() -> None:
    journal = Journal(make_domain())
    for number in range(2000):
        journal.decided(f"{number:032x}", f"{number - 1:032x}" if number else "")
    assembler = Assembler(journal.domain, journal.dialogues, journal.domain_json)
    tracemalloc.start()
    for row in journal.rows:
        assembler.assemble([row])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / 2000 < 1000


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


def test_a_turn_whose_features_are_no_float32_is_counted_and_not_learned() -> None:
    journal = Journal(make_domain())
    row = journal.decided("a")
    row.fact.decided.observation.features = b"12345"
    journal.feedback("a", reward=1)
    turns, changes = assemble(journal)
    assert not turns
    assert sum(change.counters.get("state_not_in_domain", 0) for change in changes) == 1


def test_a_turn_waits_for_its_window() -> None:
    journal = Journal(make_domain(wait_s=10))
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


@settings(max_examples=300, deadline=None)
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
    whole = Assembler(journal.domain, journal.dialogues, journal.domain_json).assemble(journal.rows)
    before = Assembler(journal.domain, journal.dialogues, journal.domain_json).assemble(journal.rows[:cut])
    after = Assembler(journal.domain, journal.dialogues, journal.domain_json).assemble(journal.rows[cut:])
    told = [[(r.decision_id, learned(r)) for r in change.records] for change in before + after]
    assert told == [[(r.decision_id, learned(r)) for r in change.records] for change in whole]
    assert [c.lesson for c in before + after] == [c.lesson for c in whole]


NAMES = [f"{dialogue}{turn}" for dialogue in "de" for turn in range(5)]
SEEN = st.sampled_from(
    [
        {"features": np.array([1, -2, 3], "<f4").tobytes()},
        {"features": np.array([1, np.nan, 3], "<f4").tobytes()},
        {"features": np.array([1e6, 1e6, 1e6], "<f4").tobytes()},  # each within its bounds
        {"features": b"short"},
        {"features": np.ones(3, "<f4").tobytes(), "slots": [{"name": "vip", "flag": True}]},
        {"features": np.ones(3, "<f4").tobytes(), "text": "none is expected"},
    ]
)


def a_turn(data: st.DataObject, name: str) -> Callable[[Journal], object]:
    """Of which the last of its dialogue is the likely parent, plainly observed."""
    number = int(name[1])
    parent = data.draw(
        st.sampled_from(["", *(2 * [f"{name[0]}{number - 1}"] if number else []), f"{name[0]}0", "lost"])
    )
    rare = data.draw(st.integers(0, 9))
    fields: dict[str, Any] = {
        "parent": parent,
        "dialogue_id": name[0],
        "time_ms": data.draw(st.integers(0, 3)) * 1000,
        "index": number,
        "action": "unknown" if rare == 0 else data.draw(st.sampled_from(["greet", "ask"])),
        "mode": dialogue_pb2.EVALUATE if rare == 1 else dialogue_pb2.TEACH,
        "recorded": rare != 2,
        "allowed": b"\x03" if rare == 3 else b"",
        "history": ["ask"] if rare == 4 else ["gone"] if rare == 5 else [],
        "observation": dialogue_pb2.Observation(**data.draw(SEEN)),
    }
    return lambda j: j.decided(name, **fields)


def a_word(data: st.DataObject) -> Callable[[Journal], object]:
    """What somebody says of a turn that may come later, or of the dialogue."""
    name = data.draw(st.sampled_from([*NAMES, "d", "e"]))
    dialogue_id, decision_id = name[0], name if len(name) > 1 else ""
    kinds: list[Callable[[Journal], object]] = [
        lambda j: j.feedback(decision_id, dialogue_id=dialogue_id, reward=-1),
        lambda j: j.feedback(decision_id, dialogue_id=dialogue_id, correction="bye"),
        lambda j: j.feedback(decision_id, dialogue_id=dialogue_id, retraction=True),
        lambda j: j.ended(decision_id, True, dialogue_id=dialogue_id, time_ms=1500),
        lambda j: j.delivered(name, "OVERRIDDEN", "bye", dialogue_id=dialogue_id),
        lambda j: j.delivered(name, "DROPPED", dialogue_id=dialogue_id),
    ]
    return data.draw(st.sampled_from(kinds))


def plainly(change: Change) -> Any:
    """A change that can be compared."""

    def plain(value: Any) -> Any:
        return (value.dtype.str, value.tolist()) if isinstance(value, np.ndarray) else value

    records = [{f.name: plain(getattr(r, f.name)) for f in dataclasses.fields(r)} for r in change.records]
    return {f.name: getattr(change, f.name) for f in dataclasses.fields(change)} | {"records": records}


@settings(max_examples=300, deadline=None)
@given(
    st.data(), st.sampled_from([0.0, 0.9]), st.sampled_from([0, 10]), st.sampled_from([0, 1]), st.booleans()
)
def test_the_short_way_of_a_turn_that_continues_its_dialogue_changes_what_the_long_way_does(
    data: st.DataObject, gamma: float, wait_s: int, history: int, forgets: bool
) -> None:
    state = {"features": 3, "slots": {"vip": {"type": "bool"}}, "history": history}
    journal = Journal(make_domain(wait_s, state, gamma=gamma))
    swaps = data.draw(st.lists(st.integers(0, len(NAMES) - 2), max_size=4))
    order = list(NAMES)
    for at in swaps:
        order[at], order[at + 1] = order[at + 1], order[at]
    facts = [a_turn(data, name) for name in order]
    for _ in range(data.draw(st.integers(0, 6))):
        facts.insert(data.draw(st.integers(0, len(facts))), a_word(data))
    for fact in facts:
        fact(journal)

    def changes(**limits: int) -> list[Any]:
        assembler = Assembler(journal.domain, journal.dialogues, journal.domain_json, **limits)
        batches = [journal.rows[at : at + 4] for at in range(0, len(journal.rows), 4)]
        return [plainly(change) for rows in batches for change in assembler.assemble(rows)]

    forgetting = {"max_dialogues": 0} if forgets else {}
    short = changes(**forgetting)
    with patch.object(DialogueFold, "_is_next_turn", lambda *_: False):
        assert short == changes(**forgetting, max_tails=0)


def test_a_forgotten_dialogue_goes_on_without_a_look_at_the_journal() -> None:
    journal = Journal(make_domain())
    names = [f"a{i}" for i in range(6)]
    for parent, name in zip(["", *names], names, strict=False):
        for dialogue in "xyz":
            journal.decided(dialogue + name, parent and dialogue + parent, dialogue_id=dialogue)
    journal.feedback("ya2", reward=1, dialogue_id="y")
    asked: list[Sequence[str]] = []

    def load(dialogues: Sequence[str], through: int) -> Iterable[Row]:
        asked.append(dialogues)
        return journal.dialogues(dialogues, through)

    def changes(**limits: int) -> list[Any]:
        asked.clear()
        assembler = Assembler(journal.domain, load, journal.domain_json, **limits)
        return [plainly(change) for row in journal.rows for change in assembler.assemble([row])]

    every = changes()
    assert changes(max_dialogues=1) == every
    assert asked == [["x"], ["y"], ["z"], ["y"]]  # as each began, and when one was rated
    assert changes(max_dialogues=1, max_tails=0) == every
    assert len(asked) == len(journal.rows)


def test_many_dialogues_in_little_memory_fold_again_from_the_journal() -> None:
    journal = Journal(make_domain())
    for i in range(20):
        journal.decided(f"a{i}", dialogue_id=f"d{i}")
    for i in range(20):
        journal.feedback(f"a{i}", reward=1, dialogue_id=f"d{i}")
    assembler = Assembler(journal.domain, journal.dialogues, journal.domain_json, max_dialogues=3)
    turns = list(itertools.chain.from_iterable(c.records for c in assembler.assemble(journal.rows)))
    assert sum(turn.reward == 1.0 for turn in turns) == 20


def test_a_dialogue_ended_twice_is_rated_at_its_last_turn_in_either_order() -> None:
    """One tab closes an old turn while another goes on."""
    facts: list[Callable[[Journal], object]] = [
        lambda j: j.decided("a"),
        lambda j: j.decided("b", "a", index=1),
        lambda j: j.ended("a", True),
        lambda j: j.ended("b", True),
        lambda j: j.feedback("", reward=1),
    ]
    for order in itertools.permutations(range(len(facts))):
        journal = Journal(make_domain(gamma=0.9))
        for index in order:
            facts[index](journal)
        turns, _ = assemble(journal)
        assert (turns["a"].reward, turns["a"].terminated) == (0.0, False), order
        assert (turns["b"].reward, turns["b"].terminated) == (1.0, True), order


def test_forks_are_counted_in_any_order_of_facts() -> None:
    facts: list[Callable[[Journal], object]] = [
        lambda j: j.decided("a"),
        lambda j: j.decided("b", "a", time_ms=1),
        lambda j: j.decided("c", "a", time_ms=2),
        lambda j: j.feedback("b", "ann", 1, reward=1),
        lambda j: j.feedback("c", "ann", 2, reward=1),
    ]
    for order in itertools.permutations(range(len(facts))):
        journal = Journal(make_domain())
        for index in order:
            facts[index](journal)
        turns, changes = assemble(journal)
        assert sum(change.counters.get("forks", 0) for change in changes) == 1, order
        assert turns["a"].successor == "b", order


def test_of_deliveries_of_one_revision_the_same_counts_in_either_order() -> None:
    """Two clients may give the same millisecond."""
    for order in (["OVERRIDDEN", "DROPPED"], ["DROPPED", "OVERRIDDEN"]):
        journal = Journal(make_domain())
        journal.decided("a")
        for how in order:
            journal.delivered("a", how, "bye", key=f"v:{how}")
        turns, _ = assemble(journal)
        assert turns["a"].action == 2, order


def test_an_answer_that_nobody_met_does_not_reopen_a_dialogue_that_ended_after_it() -> None:
    journal = Journal(make_domain(gamma=0.9))
    journal.decided("a", time_ms=1)
    journal.decided("lost", "a", time_ms=2)
    journal.ended("a", True, time_ms=3)
    turns, _ = assemble(journal)
    assert (turns["a"].terminated, turns["a"].successor) == (True, "")


def test_the_last_state_of_an_evaluation_is_not_learned_from() -> None:
    journal = Journal(make_domain(gamma=0.9))
    journal.ended("a", False, "bye")
    journal.decided("a", mode=dialogue_pb2.EVALUATE)
    turns, _ = assemble(journal)
    assert turns == {}


def test_only_rewards_for_whole_dialogues_are_warned_of() -> None:
    journal = Journal(make_domain())
    journal.feedback("", comment_only=True)
    journal.feedback("", reward=1)
    _, changes = assemble(journal)
    assert [c.counters.get("dialogue_feedback_not_learned", 0) for c in changes] == [0, 1]


def test_a_later_truth_is_not_overtaken_by_an_earlier_one_that_waits_longer() -> None:
    journal = Journal(make_domain(wait_s=10))
    journal.decided("a", time_ms=1_000)
    journal.decided("b", "a", time_ms=5_000)
    journal.feedback("a", reward=1)
    _, changes = assemble(journal)
    assert [change.due_ms for change in changes] == [11_000, 15_000, 15_000]
