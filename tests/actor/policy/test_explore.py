import hashlib
import hmac
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise_actor.policy import (
    ModeExploration,
    PolicyVersion,
    decision_seed,
    draw,
    greedy,
    mix,
    probabilities,
    softmax,
)

KEY = b"k" * 32


@st.composite
def values_and_mask(draw_from: st.DrawFn) -> tuple[Any, Any]:
    """Q-values, with many ties, and a mask that allows something; anything stands outside the mask."""
    mask = draw_from(st.lists(st.booleans(), min_size=1, max_size=12).filter(any))
    tied = st.sampled_from([-1.0, 0.0, 0.5]) | st.floats(-1e9, 1e9, width=32)
    q = [draw_from(tied if allowed else st.floats(width=32)) for allowed in mask]
    return np.array(q, np.float32), np.array(mask)


temperatures = st.floats(0, 1e9, exclude_min=True) | st.sampled_from([5e-324, 1.7e308])


@given(values_and_mask(), st.floats(0, 1), temperatures)
def test_probabilities_sum_to_1_and_are_0_outside_the_mask(
    case: tuple[Any, Any], epsilon: float, temperature: float
) -> None:
    q, allowed = case
    soft = ModeExploration(epsilon, "softmax", temperature)
    for p in (
        greedy(q, allowed),
        mix(greedy(q, allowed), allowed, epsilon),
        softmax(q, allowed, temperature),
        probabilities(q, allowed, soft),
    ):
        assert p.dtype == np.float32
        assert p.sum(dtype=np.float64) == pytest.approx(1.0, abs=1e-6)
        assert (p >= 0).all()
        assert not p[~allowed].any()


@given(values_and_mask())
def test_greedy_splits_the_best_allowed_actions_evenly(case: tuple[Any, Any]) -> None:
    q, allowed = case
    best = max(value for value, ok in zip(q, allowed, strict=True) if ok)
    chosen = [bool(ok and value == best) for value, ok in zip(q, allowed, strict=True)]
    assert greedy(q, allowed).tolist() == [float(np.float32(1 / sum(chosen))) if c else 0.0 for c in chosen]


@given(values_and_mask(), st.floats(0, 1))
def test_mix_is_the_weighted_sum(case: tuple[Any, Any], epsilon: float) -> None:
    q, allowed = case
    directed = greedy(q, allowed)
    expected = (1 - epsilon) * directed.astype(np.float64) + epsilon * allowed / allowed.sum()
    np.testing.assert_allclose(mix(directed, allowed, epsilon), expected, rtol=1e-6, atol=1e-12)


@given(values_and_mask(), st.floats(0.01, 1e3))
def test_softmax_is_boltzmanns_formula(case: tuple[Any, Any], temperature: float) -> None:
    q, allowed = case
    best = max(float(value) for value, ok in zip(q, allowed, strict=True) if ok)
    weights = [
        math.exp((float(value) - best) / temperature) if ok else 0.0
        for value, ok in zip(q, allowed, strict=True)
    ]
    expected = [weight / sum(weights) for weight in weights]
    np.testing.assert_allclose(softmax(q, allowed, temperature), expected, rtol=1e-6, atol=1e-37)


def test_softmax_gives_every_allowed_action_a_probability() -> None:
    p = softmax(np.array([1, -1, 0, 1], np.float32), np.array([True, True, True, False]), 0.025)
    assert (p[:3] > 0).all()
    assert p[3] == 0


def test_a_softmax_that_is_cold_enough_is_greedy() -> None:
    q, allowed = np.array([0.5, 0.5, 0.4], np.float32), np.ones(3, bool)
    assert np.array_equal(softmax(q, allowed, 1e-9), greedy(q, allowed))


def test_a_mode_draws_from_what_its_kind_and_epsilon_say() -> None:
    q, allowed = np.array([1, 0.5, 9], np.float32), np.array([True, True, False])
    soft = softmax(q, allowed, 0.3)
    assert np.array_equal(probabilities(q, allowed, ModeExploration()), [1, 0, 0])
    assert np.array_equal(probabilities(q, allowed, ModeExploration(0.5)), [0.75, 0.25, 0])
    assert np.array_equal(probabilities(q, allowed, ModeExploration(0.0, "softmax", 0.3)), soft)
    mixed = probabilities(q, allowed, ModeExploration(0.5, "softmax", 0.3))
    assert np.array_equal(mixed, mix(soft, allowed, 0.5))


def test_epsilon_0_changes_no_bit() -> None:
    directed = greedy(np.array([1, 1, 1, 0], np.float32), np.ones(4, bool))
    assert np.array_equal(mix(directed, np.ones(4, bool), 0.0), directed)


@pytest.mark.parametrize("q", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_values_that_are_not_finite_are_refused(q: list[float]) -> None:
    for directed in (greedy, lambda values, allowed: softmax(values, allowed, 1.0)):
        with pytest.raises(ValueError, match="q: got"):
            directed(np.array(q, np.float32), np.ones(2, bool))


def test_misuse_is_refused() -> None:
    q, both = np.zeros(2, np.float32), np.ones(2, bool)
    with pytest.raises(ValueError, match="allowed: got no action"):
        greedy(q, np.zeros(2, bool))
    with pytest.raises(ValueError, match=r"allowed: got bool\[3\]; wanted bool\[2\]"):
        greedy(q, np.ones(3, bool))
    with pytest.raises(ValueError, match=r"epsilon: got 1\.5"):
        mix(greedy(q, both), both, 1.5)
    for temperature in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="temperature: got"):
            softmax(q, both, temperature)
    with pytest.raises(ValueError, match="forbidden"):
        mix(greedy(q, both), np.array([True, False]), 0.1)
    for vector in ([0.5, 0.4], [-0.5, 1.5], [np.nan, 1.0], []):
        with pytest.raises(ValueError, match="probabilities"):
            draw(np.array([vector], np.float32), [b"12345678"])
    with pytest.raises(ValueError, match="seed: got 7 bytes"):
        draw(np.ones((1, 1), np.float32), [b"1234567"])


@given(values_and_mask(), st.floats(0, 1), st.binary(min_size=8, max_size=40))
def test_a_draw_is_possible_and_repeatable(case: tuple[Any, Any], epsilon: float, seed: bytes) -> None:
    q, allowed = case
    p = mix(greedy(q, allowed), allowed, epsilon)
    (index,) = draw(p[None], [seed])
    assert p[index] > 0
    other = np.full(len(p), 1 / len(p))
    assert draw(np.stack([other, p, other]), [b"somebody", seed, b"else's s"])[1] == index


@pytest.mark.parametrize(
    "exploration",
    [
        ModeExploration(),
        ModeExploration(0.02),
        ModeExploration(0.0, "softmax", 0.2),
        ModeExploration(0.1, "softmax", 0.2),
    ],
    ids=str,
)
def test_draws_follow_the_probabilities(exploration: ModeExploration) -> None:
    q = np.array([9.0, 0.5, 0.5, 0.3, 9.0, -0.1, 0.1, 9.0], np.float32)
    p = probabilities(q, q < 9, exploration)
    draws = 100_000
    rows = np.broadcast_to(p, (draws, len(p)))
    counts = np.bincount(draw(rows, [i.to_bytes(8, "big") for i in range(draws)]), minlength=len(p))
    assert not counts[p == 0].any()
    assert chi_square(counts, p) < 18.47  # at most 4 degrees of freedom, 1 in 1000
    nearby = mix(p, q < 9, 0.02)
    assert chi_square(counts, nearby) > 18.47  # so many draws tell it from its neighbour


def chi_square(counts: Any, p: Any) -> float:
    likely = p > 0
    expected = p[likely].astype(np.float64) * counts.sum()
    return float(((counts[likely] - expected) ** 2 / expected).sum())


def test_a_seed_hangs_on_every_part_and_its_borders() -> None:
    parts: list[tuple[str, int, str, PolicyVersion]] = [
        ("d", 1, "r", PolicyVersion(3, 17)),
        ("d1", 1, "r", PolicyVersion(3, 17)),
        ("d", 11, "r", PolicyVersion(3, 17)),
        ("d", 1, "1r", PolicyVersion(3, 17)),
        ("d", 1, "r", PolicyVersion(31, 7)),
        ("d", 1, "r3", PolicyVersion(3, 17)),
    ]
    assert len({decision_seed(KEY, *each) for each in parts}) == len(parts)
    assert decision_seed(KEY, *parts[0]) != decision_seed(b"other", *parts[0])


def test_a_seed_is_an_hmac_over_length_prefixed_parts() -> None:
    message = b"\0\0\0\x02\xc3\xa9" + b"\0\0\0\x012" + b"\0\0\0\x01r" + b"\0\0\0\x043.17"
    expected = hmac.new(KEY, message, hashlib.sha256).digest()
    assert decision_seed(KEY, "é", 2, "r", PolicyVersion(3, 17)) == expected
