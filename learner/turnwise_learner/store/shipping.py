"""Keeps a store up to date in the background: the journal, and each checkpoint once its journal is there."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow

from turnwise.v1 import training_pb2
from turnwise_learner.journal import JournalError, journal_path
from turnwise_learner.store.checkpoint_copies import CheckpointCopies
from turnwise_learner.store.config import StoreConfig
from turnwise_learner.store.errors import StoreError, StoreRefusedError
from turnwise_learner.store.journal_copy import JournalCopy
from turnwise_learner.store.objects import ObjectStore, shown

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0
_FAILURES = (OSError, StoreError, JournalError, sqlite3.Error, pyarrow.ArrowException)


class Shipping:
    """Copies the journal and the checkpoints of a data folder, each in a thread of its own.

    A store that is slow or away makes the copies late and nothing else. Failures are told once a streak, in
    the log and in `status`; it is tried again after ever longer pauses.

    Args:
        config: Where to, how often.
        data: The data folder.
        epoch: Of this learner.
    """

    def __init__(self, config: StoreConfig, data: Path, epoch: int) -> None:
        self._config, self._data, self._epoch = config, data, epoch
        self.left_behind = False
        """A request was still under way at the end."""
        self._store: ObjectStore | None = None
        self._journal: JournalCopy | None = None
        self._checkpoints: CheckpointCopies | None = None
        self._workers = (
            _Worker("journal", self._ship_journal, config.every_s),
            _Worker("checkpoints", self._ship_checkpoints, config.every_s),
        )

    def start(self, wait_s: float) -> None:
        """Begins, and waits for the first copy of the journal, but not for long.

        Raises:
            StoreRefusedError: This learner must not use the store.
        """
        journal, checkpoints = self._workers
        journal.start()
        if journal.tried.wait(wait_s) and journal.refused is not None:
            raise journal.refused
        checkpoints.start()

    def close(self, wait_s: float) -> None:
        """Copies what is new a last time, if that can be done in time."""
        deadline = time.monotonic() + wait_s
        for worker in self._workers:  # a checkpoint goes after its journal
            worker.close(max(deadline - time.monotonic(), 0.0))
            if not worker.ended:
                log.warning("the store is left behind: what is new in the %s is not in it", worker.name)
                self.left_behind = True
        if self._journal is not None and self._workers[0].ended:
            self._journal.close()

    @property
    def status(self) -> training_pb2.StoreStatus:
        """What is in the store, and what keeps the rest from it."""
        journal, checkpoints = self._journal, self._checkpoints
        return training_pb2.StoreStatus(
            uri=shown(self._config.uri),
            shipped_through=0 if journal is None else journal.through,
            checkpoint="" if checkpoints is None else checkpoints.newest,
            shipped_ms=self._workers[0].succeeded_ms,
            failures=sum(worker.failures for worker in self._workers),
            problems=[worker.problem for worker in self._workers if worker.problem],
        )

    def _ship_journal(self) -> None:
        if self._store is None:
            self._store = ObjectStore.open(self._config.uri)
        if self._journal is None:
            aside = self._data / ".store"
            self._journal = JournalCopy(self._store, journal_path(self._data), self._epoch, aside)
        self._journal.ship()

    def _ship_checkpoints(self) -> None:
        if self._store is None or self._journal is None:
            return
        if self._checkpoints is None:
            root = self._data / "checkpoints"
            self._checkpoints = CheckpointCopies(self._store, root, self._config.keep_checkpoints)
        if self._checkpoints.behind:
            self._journal.check_owner()
            self._checkpoints.copy(self._journal.through)


class _Worker:
    """Does its work every so often, and a last time at the end; tries again when it fails."""

    def __init__(self, name: str, work: Callable[[], None], every_s: float) -> None:
        self.name = name
        self._work, self._every_s = work, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"store-{name}", daemon=True)
        self._streak = 0
        self.tried = threading.Event()
        """Set once it was tried."""
        self.refused: StoreRefusedError | None = None
        self.failures = 0
        self.problem = ""
        """What went wrong the last time; empty: nothing."""
        self.succeeded_ms = 0

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def close(self, wait_s: float) -> None:
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(wait_s)

    def _run(self) -> None:
        last = False
        while not last and self.refused is None:
            last = self._closing.is_set()
            self._try()
            self.tried.set()
            self._closing.wait(min(self._every_s * 2**self._streak, max(_LONGEST_PAUSE_S, self._every_s)))

    def _try(self) -> None:
        try:
            self._work()
        except StoreRefusedError as error:
            log.error("%s", error)
            self.refused, self.problem = error, str(error)
        except _FAILURES as error:
            self._failed(error)
        else:
            if self._streak:
                log.info("the store has the %s again", self.name)
            self._streak, self.problem = 0, ""
            self.succeeded_ms = time.time_ns() // 1_000_000

    def _failed(self, error: Exception) -> None:
        if not self._streak:
            log.warning("the %s cannot be copied to the store, it is tried again: %s", self.name, error)
        self.failures += 1
        self._streak += 1
        self.problem = f"the {self.name} cannot be copied to the store ({self._streak} times): {error}"
