"""The journal as the trainer reads it: by cursor, in short snapshots, woken when it grows."""

from __future__ import annotations

import threading
from collections.abc import Callable

from turnwise_actor.policy import Domain
from turnwise_learner.journal import JournalReader
from turnwise_learner.trainer.assembler import Assembler
from turnwise_learner.trainer.turns import Change


class JournalFeed:
    """Changes after a cursor.

    Args:
        reader: The journal.
        domain: The domain in force.
        wake: Set by whoever knows that the journal has grown (or that the loop is wanted elsewhere).
        await_growth: `(cursor)`, told before a wait: has `wake` set when the journal is beyond.
    """

    def __init__(
        self,
        reader: JournalReader,
        domain: Domain,
        wake: threading.Event,
        await_growth: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._reader = reader
        self._wake = wake
        self._await_growth = await_growth
        self._assembler = Assembler(domain, reader.dialogues, reader.domain)
        self.journal_id = reader.journal_id

    def read(self, cursor: int, wait_s: float, most: int) -> list[Change]:
        """At most `most` changes; empty when none came within `wait_s` seconds."""
        rows = self._reader.read_after(cursor, most)
        if not rows and wait_s > 0 and self._woken(cursor, wait_s):
            rows = self._reader.read_after(cursor, most)
        return self._assembler.assemble(rows)

    def _woken(self, cursor: int, wait_s: float) -> bool:
        self._await_growth(cursor)
        if not self._wake.wait(wait_s):
            return False
        # Cleared only here, before another look and the caller's round: no wake-up is lost, be it for the
        # journal, a command or the end. One that came while the loop was busy costs a round.
        self._wake.clear()
        return True
