"""Facts in, turns out; what the tables of docs/semantics.md (test_semantics.py) do not say."""

import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.learner.trainer.facts import Journal, make_domain
from turnwise.v1 import dialogue_pb2
from turnwise_learner.trainer.assembler import Assembler
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
    whole = Assembler(journal.domain, journal.dialogues, journal.domain_json).assemble(journal.rows)
    before = Assembler(journal.domain, journal.dialogues, journal.domain_json).assemble(journal.rows[:cut])
    after = Assembler(journal.domain, journal.dialogues, journal.domain_json).assemble(journal.rows[cut:])
    told = [[(r.decision_id, learned(r)) for r in change.records] for change in before + after]
    assert told == [[(r.decision_id, learned(r)) for r in change.records] for change in whole]
    assert [c.lesson for c in before + after] == [c.lesson for c in whole]


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
