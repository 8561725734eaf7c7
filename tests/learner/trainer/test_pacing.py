"""Lessons grant updates; nothing else does, and no debt is lost unseen."""

from hypothesis import given
from hypothesis import strategies as st

from turnwise_learner.trainer.pacing import Pacer
from turnwise_learner.trainer.turns import Change


def test_a_lesson_is_learned_through_once_its_updates_are_done() -> None:
    pacer = Pacer(8, 0, max_owed=100)
    pacer.grant(5, lesson=True, unrated_turn=False)
    assert (pacer.owed, pacer.learned_through) == (8, 0)
    pacer.spend(7)
    assert pacer.learned_through == 0
    pacer.spend(1)
    assert (pacer.owed, pacer.learned_through) == (0, 5)


def test_a_fact_that_teaches_nothing_is_learned_through_at_once() -> None:
    pacer = Pacer(8, 0, max_owed=100)
    pacer.grant(1, lesson=False, unrated_turn=False)
    assert pacer.learned_through == 1


def test_fractions_of_an_update_add_up() -> None:
    pacer = Pacer(0.25, 0, max_owed=100)
    for cursor in range(1, 9):
        pacer.grant(cursor, lesson=True, unrated_turn=False)
    assert pacer.owed == 2


def test_debt_above_the_cap_is_forgone_and_counted() -> None:
    pacer = Pacer(8, 0, max_owed=20)
    for cursor in range(1, 6):
        pacer.grant(cursor, lesson=True, unrated_turn=False)
    assert (pacer.owed, pacer.forgone) == (20, 20)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5))), st.floats(0.1, 9))
def test_granted_is_done_and_owed_and_forgone(steps: list[tuple[bool, bool, int]], per_lesson: float) -> None:
    pacer = Pacer(per_lesson, 1.0, max_owed=15)
    for cursor, (lesson, unrated, updates) in enumerate(steps, 1):
        pacer.grant(cursor, lesson, unrated)
        pacer.spend(min(updates, pacer.owed))
        assert 0 <= pacer.owed <= 15
        debt = pacer.granted - pacer.done - pacer.forgone
        assert pacer.owed - 1e-9 <= debt < pacer.owed + 1
        assert pacer.learned_through <= cursor
    restored = Pacer(per_lesson, 1.0, max_owed=15)
    restored.set_state(pacer.get_state())
    assert (restored.owed, restored.learned_through) == (pacer.owed, pacer.learned_through)
    pacer.spend(pacer.owed)
    assert pacer.learned_through == len(steps)


FACTS = st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()))


@given(st.lists(st.tuples(FACTS, st.integers(0, 9), st.integers(0, 30))), st.sampled_from([0.0, 1.0]))
def test_facts_granted_together_leave_what_they_leave_one_by_one(
    rounds: list[tuple[list[tuple[int, bool, bool]], int, int]], per_unrated_turn: float
) -> None:
    one, other = Pacer(8, per_unrated_turn, max_owed=15), Pacer(8, per_unrated_turn, max_owed=15)
    for facts, through, updates in rounds:
        for cursor, lesson, unrated in facts:
            one.grant(min(cursor, through), lesson, unrated)
        if facts:
            one.grant(through, lesson=False, unrated_turn=False)
        changes = [Change(cursor, lesson=lesson, unrated_turn=unrated) for cursor, lesson, unrated in facts]
        other.grant_all(changes, through)
        assert other.get_state() == one.get_state()
        for pacer in (one, other):
            pacer.spend(min(updates, pacer.owed))


def test_what_is_learned_through_never_goes_back() -> None:
    """A turn that waited for its window comes after later facts of other dialogues."""
    pacer = Pacer(8, 0, max_owed=100)
    for cursor in (7, 4):
        pacer.grant(cursor, lesson=False, unrated_turn=False)
    assert pacer.learned_through == 7
