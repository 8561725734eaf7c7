"""How many different continuations one decision may have at this actor.

An actor keeps nothing about a dialogue, so a token that comes a second time cannot be told from the first
time: a retry, a second tab and a thief look alike. What it can do is to remember, for the decisions
continued last, which decisions came of them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from turnwise_actor.config import TokenConfig
from turnwise_actor.errors import PreconditionError

_DIGEST_BYTES = 16


class Branches:
    """Counts the children of decisions; a retry that gives the same decision is the same child.

    Parents and children are kept as digests, the children of one in a row: 250 bytes a decision, not 700.
    """

    def __init__(self, config: TokenConfig) -> None:
        self._most = config.max_branches
        self._remembered = config.max_branched
        self._children: OrderedDict[bytes, bytes] = OrderedDict()

    def add(self, dialogue_id: str, parent_id: str, child_id: str) -> None:
        """Notes that a decision (empty: the dialogue's beginning) was continued by another.

        Raises:
            PreconditionError: It has had all the continuations that it may have.
        """
        # The id of a decision is a digest of its dialogue's, too.
        child = bytes.fromhex(child_id)
        parent = bytes.fromhex(parent_id) if parent_id else _digest(dialogue_id)
        children = self._children.get(parent, b"")
        if child not in _each(children):
            if len(children) >= self._most * _DIGEST_BYTES:
                raise PreconditionError(
                    f"this token has been continued in {self._most} different ways; go on from one of them, "
                    "or begin a new dialogue",
                    reason="TOKEN_BRANCHES",
                )
            self._children[parent] = children + child
        self._children.move_to_end(parent)
        if len(self._children) > self._remembered:
            self._children.popitem(last=False)


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=_DIGEST_BYTES).digest()


def _each(digests: bytes) -> list[bytes]:
    return [digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES)]
