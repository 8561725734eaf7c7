"""How many updates are owed to the lessons given, and through which lesson they are paid."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any


@dataclass
class Pacer:
    """Every lesson grants updates; learning stops when they are used up.

    Invariant: granted = done + owed + forgone. Above capacity the debt is capped at `max_owed`: the oldest
    debt is forgone and counted.
    """

    updates_per_lesson: float
    updates_per_unrated_turn: float
    max_owed: int
    granted: float = 0.0
    done: int = 0
    forgone: float = 0.0
    learned_through: int = 0
    """Journal position whose lessons have had all their updates."""

    def __post_init__(self) -> None:
        self._waiting: deque[tuple[float, int]] = deque()

    @property
    def owed(self) -> int:
        """Whole updates to do now."""
        return int(self.granted - self.done - self.forgone)

    def grant(self, cursor: int, lesson: bool, unrated_turn: bool) -> None:
        """Takes the fact at `cursor` into account."""
        self.granted += self.updates_per_lesson * lesson + self.updates_per_unrated_turn * unrated_turn
        self.forgone += max(0.0, self.granted - self.done - self.forgone - self.max_owed)
        self._waiting.append((self.granted, cursor))
        self._settle()

    def spend(self, updates: int) -> None:
        """Takes updates done into account."""
        self.done += updates
        self._settle()

    def forgive(self) -> None:
        """The debt is forgone: it was owed to other weights (a rollback) or to lessons since taken back."""
        self.forgone += self.granted - self.done - self.forgone
        self._settle()

    def _settle(self) -> None:
        paid = self.done + self.forgone
        while self._waiting and self._waiting[0][0] < paid + 1:
            self.learned_through = self._waiting.popleft()[1]

    def get_state(self) -> dict[str, Any]:
        """Counters for a checkpoint; what is owed stays owed."""
        return {
            "granted": self.granted,
            "done": self.done,
            "forgone": self.forgone,
            "learned_through": self.learned_through,
            "waiting": list(self._waiting),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        self.granted, self.done, self.forgone = state["granted"], state["done"], state["forgone"]
        self.learned_through = state["learned_through"]
        self._waiting = deque(state["waiting"])
