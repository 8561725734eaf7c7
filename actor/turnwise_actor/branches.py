"""How many different continuations one decision may have at this actor.

An actor keeps nothing about a dialogue, so a token that comes a second time cannot be told from the first
time: a retry, a second tab and a thief look alike. What it can do is to remember, for the decisions
continued last, which decisions came of them.
"""

from __future__ import annotations

import hashlib

from turnwise_actor.config import TokenConfig
from turnwise_actor.errors import PreconditionError

_DIGITS = 15
"""Of an id, in hexadecimal, that are remembered: an int of two words. Two of 40,000 decisions are the same by
them once in a billion times, and then share their continuations."""


class Branches:
    """Counts the children of decisions; a retry that gives the same decision is the same child.

    Decisions are remembered in two generations: when the younger is full, the older is forgotten. One that is
    continued again is of the younger. A decision with one child costs about 100 bytes.
    """

    def __init__(self, config: TokenConfig) -> None:
        self._most = config.max_branches
        self._full = config.max_branched
        self._younger: dict[int, int | tuple[int, ...]] = {}
        self._older: dict[int, int | tuple[int, ...]] = {}

    def known(self) -> tuple[dict[int, int | tuple[int, ...]], dict[int, int | tuple[int, ...]]]:
        """What came of the decisions remembered, the younger generation and the older.

        First children may be added to the younger, of those in neither; see `turn`.
        """
        return self._younger, self._older

    def turn(self) -> None:
        """Forgets the older generation; to be called once there are `max_branched` in the younger."""
        self._older, self._younger = self._younger, {}

    def add(self, dialogue_id: str, parent_id: str, child_id: str) -> None:
        """Notes that a decision (empty: the dialogue's beginning) was continued by another.

        Raises:
            PreconditionError: It has had all the continuations that it may have.
        """
        # The id of a decision is a digest of its dialogue's, too.
        child = int(child_id[:_DIGITS], 16)
        parent = int(parent_id[:_DIGITS] or _digest(dialogue_id), 16)
        known = self._younger.get(parent)
        if known is None:
            known = self._older.pop(parent, None)
            self._younger[parent] = child if known is None else known
            if len(self._younger) >= self._full:
                self.turn()
            if known is None:
                return
        children = known if isinstance(known, tuple) else (known,)
        if child in children:
            return
        if len(children) >= self._most:
            raise PreconditionError(
                f"this token has been continued in {self._most} different ways; go on from one of them, "
                "or begin a new dialogue",
                reason="TOKEN_BRANCHES",
            )
        self._younger[parent] = (*children, child)


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()[:_DIGITS]
