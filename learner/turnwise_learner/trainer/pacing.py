"""How many updates are owed to the lessons given, and through which lesson they are paid."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from turnwise_learner.trainer.turns import Change

_UNIT = 1000
"""Updates are counted in thousandths, as whole numbers: fractions a lesson add up exactly."""


class Pacer:
    """Every lesson grants updates; learning stops when they are used up.

    Invariant: granted = done + owed + forgone, a fraction of an update aside. Above capacity the debt is
    capped at `max_owed`: the oldest debt is forgone and counted.
    """

    def __init__(self, updates_per_lesson: float, updates_per_unrated_turn: float, max_owed: int) -> None:
        self._per_lesson = round(updates_per_lesson * _UNIT)
        self._per_unrated_turn = round(updates_per_unrated_turn * _UNIT)
        self._max_owed = max_owed * _UNIT
        self._granted = self._done = self._forgone = 0
        self._waiting: deque[tuple[int, int]] = deque()
        self.learned_through = 0
        """Journal position whose lessons have had all their updates."""

    @property
    def granted(self) -> float:
        """Updates that lessons and unrated turns have granted so far."""
        return self._granted / _UNIT

    @property
    def done(self) -> int:
        """Updates done on what was granted."""
        return self._done // _UNIT

    @property
    def forgone(self) -> float:
        """Updates given up: above capacity, or owed to what is no more."""
        return self._forgone / _UNIT

    @property
    def owed(self) -> int:
        """Whole updates to do now."""
        return self._debt // _UNIT

    @property
    def _debt(self) -> int:
        return self._granted - self._done - self._forgone

    def grant_all(self, changes: Sequence[Change], through: int) -> None:
        """As `grant` of one after the other, at `through` at most, and then of `through` itself.

        Of facts that grant nothing there are many: those in a row are passed over together.
        """
        if not changes:
            return
        passed = 0
        for change in changes:
            cursor = min(change.cursor, through)
            if change.lesson or change.unrated_turn:
                if passed:
                    self.grant(passed, lesson=False, unrated_turn=False)
                    passed = 0
                self.grant(cursor, change.lesson, change.unrated_turn)
            else:
                passed = max(passed, cursor)
        self.grant(max(passed, through), lesson=False, unrated_turn=False)

    def grant(self, cursor: int, lesson: bool, unrated_turn: bool) -> None:
        """Takes the fact at `cursor` into account."""
        self._granted += self._per_lesson * lesson + self._per_unrated_turn * unrated_turn
        self._forgone += max(0, self._debt - self._max_owed)
        if self._waiting and self._waiting[-1][0] == self._granted:
            # Paid together with the one before; of facts that grant nothing there are many.
            cursor = max(cursor, self._waiting.pop()[1])
        self._waiting.append((self._granted, cursor))
        self._settle()

    def spend(self, updates: int) -> None:
        """Takes updates done into account."""
        self._done += updates * _UNIT
        self._settle()

    def forgive(self) -> None:
        """The debt is forgone: it was owed to other weights (a rollback) or to lessons since taken back."""
        self._forgone += self._debt
        self._settle()

    def _settle(self) -> None:
        paid = self._done + self._forgone
        while self._waiting and self._waiting[0][0] < paid + _UNIT:
            # Turns that waited for their window come after later facts of others.
            self.learned_through = max(self.learned_through, self._waiting.popleft()[1])

    def get_state(self) -> dict[str, Any]:
        """Counters for a checkpoint; what is owed stays owed."""
        return {
            "granted": self._granted,
            "done": self._done,
            "forgone": self._forgone,
            "learned_through": self.learned_through,
            "waiting": list(self._waiting),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        self._granted, self._done, self._forgone = state["granted"], state["done"], state["forgone"]
        self.learned_through = state["learned_through"]
        self._waiting = deque(state["waiting"])
