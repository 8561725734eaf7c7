"""One decision: from an observation, a mask and a policy to an action, its probability and its identity.

Everything random is drawn from a seed made of the dialogue, the turn, the request and the policy version,
so the same request under the same version gets the same answer at any actor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from turnwise.v1 import dialogue_pb2
from turnwise_actor.policy import Domain, ModeExploration, Policy, draw, probabilities


class Choice(NamedTuple):
    """What the policy chose. A is the number of actions in the domain."""

    action: int
    probability: float
    probabilities: bytes
    """Little-endian float32[A], zero where not allowed."""
    q_values: bytes
    """Little-endian float32[A], NaN where not allowed."""


def choose(
    policy: Policy,
    encoded: npt.NDArray[np.float32],
    allowed: npt.NDArray[np.bool_],
    explorations: Sequence[ModeExploration],
    seeds: Sequence[bytes],
) -> list[Choice]:
    """Draws for B observations from what each one's exploration makes of the values of its allowed actions.

    Args:
        policy: Gives the values.
        encoded: <float32>[B, D].
        allowed: <bool>[B, A].
        explorations: B of them.
        seeds: B of them; the same one draws the same action, whatever the rest of the batch.

    Raises:
        ValueError: The value of an allowed action is not finite.
    """
    q_values = policy.network.q_values(encoded)
    if explorations.count(explorations[0]) == len(explorations):
        chances = probabilities(q_values, allowed, explorations[0])
    else:
        chances = np.empty_like(q_values)
        for exploration in set(explorations):
            rows = np.array([each == exploration for each in explorations])
            chances[rows] = probabilities(q_values[rows], allowed[rows], exploration)
    actions, of_actions = chances.argmax(axis=1).tolist(), chances.max(axis=1).tolist()
    # What is certain, to a float32, needs no drawing: most turns where nothing is explored.
    if uncertain := [row for row, chance in enumerate(of_actions) if chance < 1.0]:
        drawn = draw(chances[uncertain], [seeds[row] for row in uncertain])
        for row, action in zip(uncertain, drawn, strict=True):
            actions[row], of_actions[row] = action, chances.item(row, action)
    shown = q_values if allowed.all() else np.where(allowed, q_values, np.float32(np.nan))
    return list(map(Choice, actions, of_actions, _rows(chances), _rows(shown)))


def _rows(values: npt.NDArray[np.float32]) -> list[bytes]:
    """The bytes of each row of <float32>[B, A]."""
    content, width = values.astype("<f4", copy=False).tobytes(), 4 * values.shape[1]
    return [content[at : at + width] for at in range(0, len(content), width)]


def say_for(domain: Domain, action: int, seed: bytes) -> str:
    """One of the action's phrasings, by the tail of the seed; empty if it has none."""
    phrasings = domain.actions[action].say
    return phrasings[int.from_bytes(seed[-8:], "little") % len(phrasings)] if phrasings else ""


def allowed_mask(domain: Domain, allowed: Sequence[str]) -> npt.NDArray[np.bool_]:
    """<bool>[A] from known action ids."""
    mask = np.zeros(len(domain.action_ids), dtype=np.bool_)
    mask[[domain.action_index[name] for name in allowed]] = True
    return mask


def pack_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """Bit i (byte i / 8, bit i % 8) is action i; empty when all are allowed."""
    return b"" if mask.all() else np.packbits(mask, bitorder="little").tobytes()


def canonical(observation: dialogue_pb2.Observation) -> dialogue_pb2.Observation:
    """The same observation with its slots in order of name: what a decision's identity is made from."""
    if len(observation.slots) < 2:
        return observation
    ordered = dialogue_pb2.Observation()
    ordered.CopyFrom(observation)
    ordered.slots.sort(key=lambda slot: slot.name)
    return ordered


def decision_id(
    dialogue_id: str,
    parent_id: str,
    observation: dialogue_pb2.Observation,
    allowed: bytes,
    action: str,
    version: str,
) -> str:
    """32 hex digits. The dialogue is part of it: first turns have no parent, and many begin with "hello"."""
    parts = (
        dialogue_id.encode(),
        parent_id.encode(),
        canonical(observation).SerializeToString(deterministic=True),
        allowed,
        action.encode(),
        version.encode(),
    )
    content = b"".join([len(part).to_bytes(4, "little") + part for part in parts])
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def linked_dialogue_id(dialogue_id: str, parent_id: str, issued_ms: int) -> str:
    """Id of the dialogue that continues an idle one, at most 128 bytes; the same at every actor."""
    digest = hashlib.blake2b(f"{dialogue_id}\0{parent_id}\0{issued_ms}".encode(), digest_size=4).hexdigest()
    return f"{_family(dialogue_id)}~{digest}"


def linked(one: str, other: str) -> bool:
    """Whether two ids name the same dialogue, or continuations of the same one."""
    return one == other or _family(one) == _family(other)


def _family(dialogue_id: str) -> str:
    """The id without its continuation suffix, cut to leave room for one."""
    head, tilde, tail = dialogue_id.rpartition("~")
    if tilde and head and len(tail) == 8 and all(digit in "0123456789abcdef" for digit in tail):
        dialogue_id = head
    return dialogue_id.encode()[:119].decode(errors="ignore")
