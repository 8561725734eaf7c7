"""What the assembler tells replay of one decision."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np


@dataclass(eq=False, slots=True)
class TurnRecord:
    """The present truth about one decision: told again, whole, whenever it changes. Nobody changes one.

    Not frozen, as it should be: that would take four times as long to make, of one for each turn.
    Letters: D inputs, A actions.
    """

    decision_id: str
    obs: np.ndarray | None
    """<float32>[D] the first time it is told, None afterwards: what was seen never changes."""
    allowed: np.ndarray
    """<bool>[A]"""
    action: int
    """The action that went out; -1: none (not delivered, or a dialogue's last state)."""
    reward: float | None
    """Scaled to [-1, 1], per-turn cost included; None: nothing to learn from the action taken."""
    successor: str = ""
    """Decision whose observation is the next state; empty: none yet."""
    terminated: bool = False
    """True: value 0 afterwards."""
    breaks_return: bool = False
    """True: an n-step return that began earlier ends before this turn."""
    corrections: tuple[Correction, ...] = ()
    rated_ms: int = 0
    """When the action taken was last rated; 0: never."""

    def __getstate__(self) -> list[Any]:
        """As a frozen one's, which is what checkpoints hold."""
        return [getattr(self, field.name) for field in fields(self)]

    def __setstate__(self, state: list[Any]) -> None:
        for own, value in zip(fields(self), state, strict=True):
            setattr(self, own.name, value)


@dataclass(frozen=True, slots=True)
class Correction:
    """One teacher's live "you should have said `action`" on a decision."""

    teacher: str
    revision: int
    action: int


@dataclass(slots=True)
class Change:
    """What one fact changes for learning. Nobody changes one; not frozen, for the same reason."""

    cursor: int
    """Journal position of the fact."""
    records: tuple[TurnRecord, ...] = ()
    lesson: bool = False
    """A reward, correction or retraction that changes what is to be learned."""
    unrated_turn: bool = False
    """A turn confirmed without a rating, where those are learned from."""
    due_ms: int = 0
    """Not to be learned before this time (`rewards.wait`)."""
    counters: dict[str, int] = field(default_factory=dict)
    """Increments of the trainer's counters."""

    def __getstate__(self) -> dict[str, Any]:
        """As one without slots, which is what checkpoints hold."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
