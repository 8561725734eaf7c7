"""Replay against slow, obvious versions written from the formulas."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise_learner.trainer.replay import ReplayConfig, TurnReplay
from turnwise_learner.trainer.turns import Change, Correction, TurnRecord

A = 3


def record(name: str, reward: float | None = 1.0, action: int = 0, **fields: Any) -> TurnRecord:
    obs = fields.pop("obs", np.full(4, float(sum(name.encode())), np.float32))
    allowed = fields.pop("allowed", np.ones(A, bool))
    rated = fields.pop("rated_ms", 0 if reward is None else 1)
    return TurnRecord(name, obs, allowed, action, reward, rated_ms=rated, **fields)


def make(gamma: float = 0.0, n_step: int = 1, capacity: int = 64, **config: Any) -> TurnReplay:
    return TurnReplay(4, A, gamma, n_step, ReplayConfig(capacity_turns=capacity, **config))


def columns(replay: TurnReplay, name: str) -> dict[str, np.ndarray]:
    """The one row of `name`, as the learner would get it."""
    rows = np.array([replay._rows[name]])
    return replay._columns_of(rows, np.ones(1, np.float32))


def test_a_turn_without_reward_is_never_drawn() -> None:
    replay = make()
    replay.apply([record("a", None), record("b", 1.0)])
    rows, _ = replay.sample(32)
    assert {replay.decision_id[row] for row in rows} == {b"b"}


def test_nothing_to_learn_is_an_error_not_a_loop() -> None:
    replay = make()
    replay.apply([record("a", None)])
    with pytest.raises(ValueError, match="nothing to learn"):
        replay.sample(32)


def test_an_amended_reward_is_seen_and_has_the_highest_priority() -> None:
    replay = make()
    replay.apply([record("a", -1.0)])
    replay.apply([record("b", -1.0)])
    replay.update_priorities(np.arange(2), np.array([0.5, 0.1]))
    replay.apply([replace(record("b", 1.0), obs=None)])
    assert replay.priority("b") > replay.priority("a")
    assert columns(replay, "b")["rewards"] == 1.0


def test_a_retold_turn_with_the_same_value_keeps_its_priority() -> None:
    replay = make()
    replay.apply([record("a", -1.0)])
    replay.update_priorities(np.arange(1), np.array([0.1]))
    before = replay.priority("a")
    replay.apply([replace(record("a", -1.0, successor="b"), obs=None), record("b", None)])
    assert replay.priority("a") == before


def test_a_retracted_turn_is_never_drawn_again() -> None:
    replay = make()
    replay.apply([record("a"), record("b")])
    replay.apply([replace(record("a", None), obs=None)])
    assert {replay.decision_id[row] for row in replay.sample(64)[0]} == {b"b"}


def test_a_turn_at_gamma_09_waits_for_its_next_state() -> None:
    replay = make(gamma=0.9)
    replay.apply([record("a", 1.0)])
    assert not replay.learnable
    replay.apply([replace(record("a", 1.0, successor="b"), obs=None), record("b", None, obs=np.ones(4))])
    assert replay.learnable
    drawn = columns(replay, "a")
    assert drawn["discounts"] == np.float32(0.9)
    assert (drawn["new_obs"] == 1).all()


def slow_return(turns: list[dict[str, Any]], i: int, gamma: float, n: int) -> tuple[float, float, int]:
    """From docs/semantics.md: reward by reward, until something ends the return."""
    total, discount = 0.0, 1.0
    for k in range(n):
        turn = turns[i + k]
        last = i + k == len(turns) - 1
        if k and (turn["reward"] is None or turn["breaks"] or (last and not turn["terminated"])):
            return total, discount, i + k
        total += discount * turn["reward"]
        discount *= gamma
        if turn["terminated"]:
            return total, 0.0, 0
    return total, discount, i + n


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.none(), st.floats(-1, 1)), st.booleans()), min_size=2, max_size=8),
    st.booleans(),
    st.integers(1, 5),
)
def test_n_step_returns_follow_the_formula(
    spec: list[tuple[float | None, bool]], terminated: bool, n: int
) -> None:
    turns = [
        {"reward": None if r is None else float(np.float32(r)), "breaks": b or r is None, "terminated": False}
        for r, b in spec
    ]
    turns[-1]["terminated"] = terminated
    replay = make(gamma=0.9, n_step=n)
    names = [f"t{i}" for i in range(len(turns))]
    replay.apply(
        [
            record(
                name,
                turn["reward"],
                obs=np.full(4, i, np.float32),
                successor=names[i + 1] if i + 1 < len(turns) else "",
                terminated=turn["terminated"],
                breaks_return=turn["breaks"],
            )
            for i, (name, turn) in enumerate(zip(names, turns, strict=True))
        ]
    )
    for i, name in enumerate(names):
        trainable = turns[i]["reward"] is not None and (i + 1 < len(turns) or terminated)
        assert (replay.priority(name) > 0) == trainable
        if not trainable:
            continue
        total, discount, following = slow_return(turns, i, 0.9, n)
        drawn = columns(replay, name)
        assert drawn["rewards"][0] == pytest.approx(total, abs=1e-5)
        if discount:
            assert drawn["discounts"][0] == pytest.approx(discount, abs=1e-6)
            assert drawn["new_obs"][0, 0] == following
        else:
            assert "discounts" not in drawn


def test_importance_weights_are_those_of_the_mixture() -> None:
    replay = make(protected_share=0.25, beta=0.5)
    replay.apply([record(f"r{i}") for i in range(20)])
    replay.apply([record("c", None, corrections=(Correction("ann", 1, 2),))], lesson=True)
    replay.update_priorities(np.arange(20), np.linspace(0.1, 1, 20))
    batch = 16
    rows, drawn = replay.sample(batch)
    priorities = replay._tree.leaves[:21]
    newest, protected = replay._rows["c"], replay._rows["c"]
    p = (batch - 5) / batch * priorities / priorities.sum()
    p[protected] += 4 / batch
    p[newest] += 1 / batch
    wanted = (21 * p[rows]) ** -0.5
    np.testing.assert_allclose(drawn["weights"], wanted / wanted.max(), rtol=1e-5)


def test_the_newest_lesson_is_in_every_batch() -> None:
    replay = make(capacity=4096)
    replay.apply([record(f"r{i}") for i in range(3000)])
    replay.apply([record("new")], lesson=True)
    replay.update_priorities(np.array([replay._rows["new"]]), np.array([0.0]))
    for _ in range(20):
        assert replay._rows["new"] in replay.sample(32)[0]


def test_corrected_turns_keep_their_share_of_every_batch() -> None:
    replay = make(capacity=4096)
    replay.apply([record(f"r{i}") for i in range(3000)])
    replay.apply([record("c", None, corrections=(Correction("ann", 1, 2),))])
    rows, _ = replay.sample(32)
    assert (rows == replay._rows["c"]).sum() >= 8


def test_eviction_takes_the_oldest_and_spares_live_corrections() -> None:
    replay = make(capacity=64)
    replay.apply([record("kept", None, corrections=(Correction("ann", 1, 2),))])
    for i in range(200):
        replay.apply([record(f"r{i}")])
    assert len(replay) == 64
    assert "kept" in replay
    assert "r199" in replay
    assert "r100" not in replay
    assert replay.evicted == 201 - 64


def test_an_amendment_of_an_evicted_turn_is_counted_not_inserted() -> None:
    replay = make(capacity=64)
    for i in range(100):
        replay.apply([record(f"r{i}")])
    replay.apply([replace(record("r0", -1.0), obs=None)])
    assert "r0" not in replay
    assert replay.amended_too_late == 1


def test_evicting_a_next_state_leaves_no_dangling_link() -> None:
    replay = make(gamma=0.9, capacity=64)
    replay.apply([record("b", None)])
    replay.apply([record("a", 1.0, successor="b")])
    for i in range(63):
        replay.apply([record(f"r{i}", None)])
    assert "b" not in replay
    assert replay.priority("a") == 0


SAME = np.ones(4, np.float32)


def test_of_one_teacher_and_state_the_newest_correction_wins() -> None:
    replay = make()
    replay.apply([record("a", None, obs=SAME, corrections=(Correction("ann", 1, 1),))])
    replay.apply([record("b", None, obs=SAME, corrections=(Correction("ann", 2, 2),))])
    assert not columns(replay, "a")["corrected"].any()
    assert columns(replay, "b")["corrected"].tolist() == [[False, False, True]]


def test_corrections_of_several_teachers_make_a_set() -> None:
    replay = make()
    replay.apply([record("a", None, obs=SAME, corrections=(Correction("ann", 1, 1),))])
    replay.apply([record("b", None, obs=SAME, corrections=(Correction("bob", 2, 2),))])
    for name in "ab":
        assert columns(replay, name)["corrected"].tolist() == [[False, True, True]]


def test_a_correction_later_punished_loses_its_protection() -> None:
    replay = make()
    replay.apply([record("a", None, obs=SAME, corrections=(Correction("ann", 1, 2),))])
    replay.apply([record("b", -1.0, action=2, obs=SAME, rated_ms=5)])
    assert not columns(replay, "a")["corrected"].any()
    assert replay.priority("a") == 0


def test_a_correction_once_rated_is_taught_by_the_rating() -> None:
    replay = make()
    replay.apply([record("a", None, obs=SAME, corrections=(Correction("ann", 1, 2),))])
    assert columns(replay, "a")["correction_open"].tolist() == [[False, False, True]]
    replay.apply([record("b", 0.5, action=2, obs=SAME, rated_ms=5)])
    assert columns(replay, "a")["corrected"].tolist() == [[False, False, True]]
    assert not columns(replay, "a")["correction_open"].any()


def test_a_retracted_correction_is_gone() -> None:
    replay = make()
    replay.apply([record("a", None, corrections=(Correction("ann", 1, 2),))])
    replay.apply([replace(record("a", None), obs=None)])
    assert not replay.learnable


def test_not_finite_errors_change_no_priority() -> None:
    replay = make()
    replay.apply([record("a"), record("b")])
    before = replay.priority("a")
    replay.update_priorities(np.arange(2), np.array([np.nan, np.inf]))
    assert replay.priority("a") == before
    assert np.isfinite(replay._tree.total)


def test_a_saved_replay_draws_on_exactly_as_the_original() -> None:
    replay = make(gamma=0.9, n_step=3, capacity=64)
    for i in range(90):
        corrections = (Correction("ann", i, 1),) if i % 7 == 0 else ()
        replay.apply(
            [
                record(
                    f"r{i}",
                    None if corrections else float(np.sin(i)),
                    terminated=i % 3 == 0,
                    corrections=corrections,
                )
            ],
            lesson=True,
        )
    replay.update_priorities(*(lambda rows: (rows, np.linspace(0, 1, 32)))(replay.sample(32)[0]))
    other = make(gamma=0.9, n_step=3, capacity=64)
    other.set_state(replay.get_state())
    for _ in range(5):
        (rows, drawn), (rows2, drawn2) = replay.sample(16), other.sample(16)
        np.testing.assert_array_equal(rows, rows2)
        for name in drawn:
            np.testing.assert_array_equal(drawn[name], drawn2[name])
    replay.apply([record("new")])
    other.apply([record("new")])
    assert replay._rows == other._rows


def test_float16_observations_are_kept_and_restored_as_such() -> None:
    replay = make(obs_dtype="float16", gamma=0.9)
    obs = np.array([0.1, -2.5, 1e6, -np.inf], np.float32)
    replay.apply([record("a", obs=obs, successor="b"), record("b", None, obs=obs * 2)])
    drawn = columns(replay, "a")
    assert drawn["obs"].dtype == drawn["new_obs"].dtype == np.float32
    np.testing.assert_array_equal(drawn["obs"][0], np.float16([0.1, -2.5, 65504, -65504]))
    other = make(obs_dtype="float16", gamma=0.9)
    other.set_state(replay.get_state())
    assert other.obs.dtype == np.float16
    np.testing.assert_array_equal(columns(other, "a")["obs"], drawn["obs"])


def test_another_obs_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="obs_dtype is 'float64'; wanted float32 or float16"):
        make(obs_dtype="float64")


def test_a_correction_taken_back_is_gone_though_its_turn_is_rated() -> None:
    replay = make()
    replay.apply([record("a", -1.0, corrections=(Correction("ann", 1, 2),))])
    replay.apply([replace(record("a", -1.0), obs=None)])
    assert not columns(replay, "a")["corrected"].any()


def test_a_replay_that_has_grown_fills_its_new_rows_first() -> None:
    replay, larger = make(capacity=64), make(capacity=128)
    for i in range(100):
        replay.apply([record(f"r{i}")])
    larger.set_state(replay.get_state())
    for i in range(100, 164):
        larger.apply([record(f"r{i}")])
    assert len(larger) == 128
    assert "r36" in larger


def amended(rng: np.random.Generator, known: TurnRecord, names: list[str], at: int) -> TurnRecord:
    """Something else is true of a turn now."""
    kind = rng.integers(5)
    if kind == 0:
        return replace(known, reward=float(rng.choice([-1.0, 0.5])), rated_ms=at)
    if kind == 1:
        return replace(known, reward=None, rated_ms=0)
    if kind == 2:
        given = (Correction(str(rng.choice(["ann", "bob"])), at, int(rng.integers(A))),)
        return replace(known, corrections=given if rng.random() < 0.7 else ())
    if kind == 3:
        return replace(known, action=int(rng.integers(-1, A)), terminated=bool(rng.integers(2)))
    return replace(known, successor=str(rng.choice(["", *names[-20:]])))


def random_changes(rng: np.random.Generator, count: int) -> list[Change]:
    """Turns and amendments of them in four states, some of them too late."""
    changes, known = [], dict[str, TurnRecord]()
    for at in range(1, count + 1):
        names = list(known)
        records = []
        if not names or rng.random() < 0.5:
            obs = np.full(4, rng.integers(4), np.float32)
            records.append(record(f"t{at}", None, int(rng.integers(-1, A)), obs=obs))
        for name in rng.choice(names[-100:], min(len(names), int(rng.integers(3))), replace=False):
            records.append(amended(rng, known[name], [*names, f"t{at}"], at))
        rng.shuffle(records)  # type: ignore[arg-type]
        known |= {told.decision_id: replace(told, obs=None) for told in records}
        changes.append(Change(at, tuple(records), lesson=bool(rng.integers(2))))
    return changes


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.9]), st.integers(2, 100))
def test_changes_applied_together_leave_what_they_leave_one_by_one(
    seed: int, gamma: float, most: int
) -> None:
    rng = np.random.default_rng(seed)
    changes = random_changes(rng, 250)
    one, other = make(gamma), make(gamma)
    at = 0
    while at < len(changes):
        some = changes[at : at + int(rng.integers(1, most))]
        at += len(some)
        for change in some:
            one.apply(change.records, change.lesson)
        other.apply_all(some)
        np.testing.assert_equal(other.get_state(), one.get_state())
        assert other._tree.total == one._tree.total
        if one.learnable:
            rows, errors = one.sample(16)[0], rng.exponential(1, 16)
            np.testing.assert_array_equal(other.sample(16)[0], rows)
            one.update_priorities(rows, errors)
            other.update_priorities(rows, errors)
