"""What callers get: plain, frozen values read from replies."""

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from turnwise._errors import UnexpectedReply
from turnwise.v1 import dialogue_pb2 as pb

Reply: TypeAlias = pb.StartDialogueReply | pb.Turn | pb.Receipt | pb.DomainDescription


@dataclass(frozen=True, order=True)
class PolicyVersion:
    """Which policy decided; versions order by generation, then number, and print as `3.17`.

    Attributes:
        generation: Grows with every start of the learner and every rollback.
        number: From 1 in each generation; 0.0 is a policy that has learned nothing.
    """

    generation: int
    number: int

    def __str__(self) -> str:
        return f"{self.generation}.{self.number}"


@dataclass(frozen=True)
class Receipt:
    """Where a fact is durable.

    Attributes:
        settled: `LEARNER`: committed to the learner's journal. `SPOOLED`: fsynced on the actor's disk;
            the client sends it again in the background until the learner has it.
        journal_cursor: Its position in the journal when `LEARNER`, else 0: a turn whose
            `learned_through` is at or beyond it was decided by a policy that has learned from it.
    """

    settled: Literal["LEARNER", "SPOOLED"]
    journal_cursor: int


@dataclass(frozen=True)
class Slot:
    """What the bot can be told under one slot name.

    Attributes:
        type: `category`, `number` or `bool`.
        categories: The known categories; any other string counts as `<other>`.
        min: Numbers below are clamped to it.
        max: Numbers above are clamped to it.
    """

    name: str
    type: str
    categories: tuple[str, ...]
    min: float
    max: float


@dataclass(frozen=True)
class Domain:
    """What the bot can see and do.

    Attributes:
        fingerprint: 16 hex digits over all that shapes the policy.
        actions: Action ids, in the domain's order, each with its phrasings.
        slots: What can be told, by name.
        text: Whether the bot reads the person's words.
        features: How many floats `features=` holds.
        reward_min: The worst reward.
        reward_max: The best reward.
        gamma: Discount a turn; 0: each turn is judged alone.
        idle_timeout_s: After so long a silence a dialogue continues as a new, linked one.
        max_turns: After so many turns a dialogue should end with outcome `limit`.
    """

    name: str
    version: str
    fingerprint: str
    actions: Mapping[str, tuple[str, ...]]
    slots: Mapping[str, Slot]
    text: bool
    features: int
    reward_min: float
    reward_max: float
    gamma: float
    idle_timeout_s: int
    max_turns: int


def read_domain(described: pb.DomainDescription) -> Domain:
    """The domain as callers see it."""
    slots = {
        slot.name: Slot(slot.name, slot.type, tuple(slot.categories), slot.min, slot.max)
        for slot in described.slots
    }
    return Domain(
        name=described.name,
        version=described.version,
        fingerprint=described.fingerprint,
        actions=MappingProxyType({action.id: tuple(action.say) for action in described.actions}),
        slots=MappingProxyType(slots),
        text=described.text,
        features=described.features,
        reward_min=described.reward_min,
        reward_max=described.reward_max,
        gamma=described.gamma,
        idle_timeout_s=described.idle_timeout_s,
        max_turns=described.max_turns,
    )


def read_receipt(receipt: pb.Receipt) -> Receipt:
    """The receipt as callers see it.

    Raises:
        UnexpectedReply: It does not say where the fact is.
    """
    if receipt.settled == pb.Receipt.LEARNER:
        return Receipt("LEARNER", receipt.journal_cursor)
    if receipt.settled == pb.Receipt.SPOOLED:
        return Receipt("SPOOLED", 0)
    raise UnexpectedReply(f"receipt.settled is {receipt.settled}; wanted LEARNER or SPOOLED")


def read_q_values(data: bytes, actions: Iterable[str]) -> dict[str, float]:
    """Values by action id, of the allowed actions alone.

    Args:
        data: <float32>[A], little-endian, NaN where not allowed.
        actions: The A action ids in the domain's order.

    Raises:
        UnexpectedReply: The number of values differs from the number of actions.
    """
    ids = tuple(actions)
    if len(data) != 4 * len(ids):
        raise UnexpectedReply(f"{len(data)} bytes of q_values; wanted {4 * len(ids)} for {len(ids)} actions")
    values = struct.unpack(f"<{len(ids)}f", data)
    return {action: value for action, value in zip(ids, values, strict=True) if not math.isnan(value)}
