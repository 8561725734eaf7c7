"""From Q-values to an action: pi = (1 - epsilon) directed + epsilon uniform(allowed), drawn from a seed.

`directed` is greedy or softmax: both have a closed form, so the probability of every choice can be recorded.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import numpy as np
import numpy.typing as npt

from turnwise_actor.policy.policy_file import ModeExploration, PolicyVersion

Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def probabilities(q: npt.NDArray[np.floating[Any]], allowed: Mask, exploration: ModeExploration) -> Float32:
    """What a mode draws from, <float32>[A]: 0 outside the mask.

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
    """Probabilities <float32>[A]: uniform over the allowed actions of the highest value, 0 elsewhere.

    Args:
        q: <float>[A]; whatever it holds outside the mask is ignored.
        allowed: <bool>[A].

    Raises:
        ValueError: no action is allowed, or the value of an allowed one is not finite.
    """
    mask = _mask(allowed, len(q))
    chosen = np.where(mask, q, -np.inf) == _finite(q[mask]).max()
    share = 1.0 / np.count_nonzero(chosen)
    return np.where(chosen, np.float32(share), np.float32(0.0))


def softmax(q: npt.NDArray[np.floating[Any]], allowed: Mask, temperature: float) -> Float32:
    """Probabilities <float32>[A]: proportional to exp(q / temperature) over the allowed actions, 0 elsewhere.

    Above 0 for every allowed action less than 87 temperatures below the best; beyond, float32 has no number.

    Raises:
        ValueError: as `greedy`, or the temperature is not above 0.
    """
    mask = _mask(allowed, len(q))
    if not 0.0 < temperature < np.inf:
        raise ValueError(f"temperature: got {temperature!r}; wanted a finite number above 0")
    values = _finite(q[mask]).astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, whose exponential is 0, as it should be
        weights = np.exp((values - values.max()) / temperature)
    result = np.zeros(len(q), np.float32)
    result[mask] = weights / weights.sum()
    return result


def mix(directed: Float32, allowed: Mask, epsilon: float) -> Float32:
    """Probabilities <float32>[A]: (1 - epsilon) * directed + epsilon * uniform(allowed).

    Raises:
        ValueError: epsilon is outside [0, 1], no action is allowed, or `directed` has mass outside the mask.
    """
    mask = _mask(allowed, len(directed))
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon: got {epsilon!r}; wanted a number from 0 to 1")
    if directed[~mask].any():
        raise ValueError(f"directed: got {directed[~mask].sum()} on forbidden actions; wanted 0")
    uniform = mask / np.count_nonzero(mask)
    return ((1.0 - epsilon) * directed.astype(np.float64) + epsilon * uniform).astype(np.float32)


def draw(probabilities: npt.NDArray[np.floating[Any]], seed: bytes) -> int:
    """Index of an action drawn from the probabilities; the same seed draws the same action.

    Inverse CDF at a 53-bit uniform number made from the seed. Never an action of probability 0.

    Raises:
        ValueError: not a vector of probabilities, or a seed under 8 bytes.
    """
    if len(seed) < 8:
        raise ValueError(f"seed: got {len(seed)} bytes; wanted 8 or more")
    p = np.asarray(probabilities, np.float64)
    cdf = np.cumsum(p)
    if not len(p) or not (p >= 0.0).all() or not abs(cdf[-1] - 1.0) < 1e-3:
        raise ValueError(f"probabilities: got {probabilities}; wanted numbers from 0 that sum to 1")
    number = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "little")
    uniform = (number >> 11) * 2.0**-53
    index = int(np.searchsorted(cdf, uniform * cdf[-1], side="right"))
    return index if index < len(p) and p[index] > 0.0 else int(np.flatnonzero(p)[-1])


def decision_seed(key: bytes, dialogue_id: str, index: int, request_id: str, version: PolicyVersion) -> bytes:
    """32 bytes that seed a decision: HMAC-SHA256 over length-prefixed fields.

    A retry of the same request under the same version draws the same action, on any actor with the key.
    """
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for text in (dialogue_id, str(index), request_id, str(version)):
        part = text.encode()
        mac.update(len(part).to_bytes(4, "big") + part)
    return mac.digest()


def _finite(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    if not np.isfinite(values).all():
        raise ValueError(f"q: got {values}; wanted finite values for the allowed actions")
    return values


def _mask(allowed: Mask, actions: int) -> Mask:
    if allowed.shape != (actions,) or allowed.dtype != np.bool_:
        raise ValueError(f"allowed: got {allowed.dtype}{list(allowed.shape)}; wanted bool[{actions}]")
    if not allowed.any():
        raise ValueError("allowed: got no action; wanted at least one")
    return allowed
