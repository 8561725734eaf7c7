"""From Q-values to an action: pi = (1 - epsilon) directed + epsilon uniform(allowed), drawn from a seed.

`directed` is greedy or softmax: both have a closed form, so the probability of every choice can be recorded.
A: number of actions; a batch has its actions in the last axis.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from turnwise_actor.policy.policy_file import ModeExploration, PolicyVersion

Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def probabilities(q: npt.NDArray[np.floating[Any]], allowed: Mask, exploration: ModeExploration) -> Float32:
    """What a mode draws from, <float32>[..., A]: 0 outside the mask.

    Raises:
        ValueError: no action is allowed, or the value of an allowed one is not finite.
    """
    match exploration.kind:
        case "greedy":
            directed = greedy(q, allowed)
        case "softmax":
            directed = softmax(q, allowed, exploration.temperature)
    return mix(directed, allowed, exploration.epsilon) if exploration.epsilon > 0.0 else directed


def greedy(q: npt.NDArray[np.floating[Any]], allowed: Mask) -> Float32:
    """Probabilities <float32>[..., A]: uniform over the allowed actions of the highest value, 0 elsewhere.

    Args:
        q: <float>[..., A]; whatever it holds outside the mask is ignored.
        allowed: <bool>[..., A].

    Raises:
        ValueError: no action is allowed, or the value of an allowed one is not finite.
    """
    values = _allowed_values(q, allowed)
    even: Float32 = (values == values.max(axis=-1, keepdims=True)).astype(np.float32)
    even /= even.sum(axis=-1, keepdims=True)
    return even


def softmax(q: npt.NDArray[np.floating[Any]], allowed: Mask, temperature: float) -> Float32:
    """Probabilities <float32>[..., A]: proportional to exp(q / temperature) over the allowed actions.

    Above 0 for every allowed action less than 87 temperatures below the best; beyond, float32 has no number.

    Raises:
        ValueError: as `greedy`, or the temperature is not above 0.
    """
    values = _allowed_values(q, allowed).astype(np.float64)
    if not 0.0 < temperature < np.inf:
        raise ValueError(f"temperature: got {temperature!r}; wanted a finite number above 0")
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, whose exponential is 0, as it should be
        weights = np.exp((values - values.max(axis=-1, keepdims=True)) / temperature)
    soft: Float32 = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    return soft


def mix(directed: Float32, allowed: Mask, epsilon: float) -> Float32:
    """Probabilities <float32>[..., A]: (1 - epsilon) * directed + epsilon * uniform(allowed).

    Raises:
        ValueError: epsilon is outside [0, 1], no action is allowed, or `directed` has mass outside the mask.
    """
    mask = _mask(allowed, directed.shape)
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon: got {epsilon!r}; wanted a number from 0 to 1")
    if directed[~mask].any():
        raise ValueError(f"directed: got {directed[~mask].sum()} on forbidden actions; wanted 0")
    uniform = mask / np.count_nonzero(mask, axis=-1, keepdims=True)
    return ((1.0 - epsilon) * directed.astype(np.float64) + epsilon * uniform).astype(np.float32)


def draw(probabilities: npt.NDArray[np.floating[Any]], seeds: Sequence[bytes]) -> list[int]:
    """Indexes of actions drawn from each row of probabilities; the same seed draws the same action.

    Inverse CDF at a 53-bit uniform number made from the seed. Never an action of probability 0.

    Args:
        probabilities: <float>[B, A].
        seeds: B of them.

    Raises:
        ValueError: a row that is no vector of probabilities, or a seed under 8 bytes.
    """
    if short := [len(seed) for seed in seeds if len(seed) < 8]:
        raise ValueError(f"seed: got {short[0]} bytes; wanted 8 or more")
    p = np.asarray(probabilities, np.float64)
    cdf = np.cumsum(p, axis=1)
    if not p.size or not p.min() >= 0.0 or not np.abs(cdf[:, -1] - 1.0).max() < 1e-3:
        raise ValueError(f"probabilities: got {probabilities}; wanted numbers from 0 that sum to 1")
    digests = (hashlib.blake2b(seed, digest_size=8).digest() for seed in seeds)
    uniform = np.array([int.from_bytes(digest, "little") >> 11 for digest in digests]) * 2.0**-53
    indexes: list[int] = (cdf <= (uniform * cdf[:, -1])[:, None]).sum(axis=1).tolist()
    # Rounding may leave the number at the very end of the CDF: the last possible action is meant then.
    return [i if i < p.shape[1] else int(np.flatnonzero(row)[-1]) for i, row in zip(indexes, p, strict=True)]


def decision_seed(key: bytes, dialogue_id: str, index: int, request_id: str, version: PolicyVersion) -> bytes:
    """32 bytes that seed a decision: HMAC-SHA256 over length-prefixed fields.

    A retry of the same request under the same version draws the same action, on any actor with the key.
    """
    parts = [text.encode() for text in (dialogue_id, str(index), request_id, str(version))]
    return hmac.digest(key, b"".join([len(part).to_bytes(4, "big") + part for part in parts]), "sha256")


def _allowed_values(q: npt.NDArray[np.floating[Any]], allowed: Mask) -> npt.NDArray[np.floating[Any]]:
    """The values, -inf where not allowed."""
    mask = _mask(allowed, q.shape)
    if np.isfinite(q).all():
        return q if mask.all() else np.where(mask, q, -np.inf)
    if not (np.isfinite(q) | ~mask).all():
        raise ValueError(f"q: got {q}; wanted finite values for the allowed actions")
    return np.where(mask, q, -np.inf)


def _mask(allowed: Mask, shape: tuple[int, ...]) -> Mask:
    if allowed.shape != shape or allowed.dtype != np.bool_:
        raise ValueError(f"allowed: got {allowed.dtype}{list(allowed.shape)}; wanted bool{list(shape)}")
    if not (allowed.all() or allowed.any(axis=-1).all()):
        raise ValueError("allowed: got no action; wanted at least one")
    return allowed
