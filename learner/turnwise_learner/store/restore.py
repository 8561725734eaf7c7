"""Fetches journal and newest checkpoint from a store into a data folder that has no journal."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from turnwise_actor.access.files import sync
from turnwise_actor.policy import PolicyVersion
from turnwise_learner.journal import SCHEMA, JournalState, create_schema, journal_path
from turnwise_learner.store.checkpoint_copies import fetch, stored_checkpoints
from turnwise_learner.store.errors import StoreError
from turnwise_learner.store.journal_copy import stored_segments, stored_state, take_over, takeovers
from turnwise_learner.store.objects import ObjectStore, shown
from turnwise_learner.store.segments import Takeover, chain, counting, end_of, load
from turnwise_learner.trainer.checkpoints import Checkpoint, CheckpointFolder, Manifest

log = logging.getLogger(__name__)

JUMP = 1_000_000
"""How far above the stored epoch, generation and position a restored journal goes on. The lost one may have
given out later ones: actors refuse an epoch, and pass over a policy, that goes back; and who was told of a
position that was lost, or has a policy that learned it, must not take another fact for it."""
_TOLD_EVERY_S = 5.0
_README = b"""Journal and checkpoints of a Turnwise learner, with what people said to it.
A learner started with an empty data folder and this store goes on from here; see docs/operations.md.
"""


def restore(uri: str, data: Path) -> bool:
    """Fetches what the store has, if the data folder has no journal; True: it did.

    The journal appears in the data folder last: a restore that is interrupted begins again.

    Raises:
        StoreRefusedError: pyarrow does not know the store's URI.
        StoreError: What is there cannot be used.
        OSError: The store is away, or the disk is full.
    """
    journal = journal_path(data)
    if journal.exists():
        return False
    for log_file in (journal.with_name(f"{journal.name}-wal"), journal.with_name(f"{journal.name}-shm")):
        if log_file.exists():
            raise StoreError(
                f"{log_file} lies there without {journal.name}: bring that back, or move it away"
            )
    store = ObjectStore.open(uri)
    state = stored_state(store)
    if state is None:
        # Nobody shall find out in a month that it cannot be written.
        store.put("turnwise.txt", _README)
        log.info("nothing is in %s yet: a new journal begins", shown(uri))
        return False
    log.info("restoring from %s", shown(uri))
    aside = data / ".restore"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _Restore(store, state, data, aside).run()
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return True


class _Restore:
    def __init__(self, store: ObjectStore, state: JournalState, data: Path, aside: Path) -> None:
        if state.meta.get("schema") != str(SCHEMA):
            raise StoreError(
                f"journal schema in the store is {state.meta.get('schema')!r}; this version reads {SCHEMA}"
            )
        self._store, self._state, self._data, self._aside = store, state, data, aside
        self._takeovers = takeovers(store)
        found = counting(stored_segments(store), self._takeovers)
        self._chain = chain(found)
        if any(segment.last > end_of(self._chain) for segment in found):
            raise StoreError(
                f"facts are missing in the store after position {end_of(self._chain)}; it was changed by "
                "hand. Bring back what was removed, or remove what is beyond to go on without it"
            )

    def run(self) -> None:
        file = self._aside / "journal.sqlite"
        with contextlib.closing(sqlite3.connect(file, isolation_level=None, uri=True)) as journal:
            for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -131072"):
                journal.execute(f"PRAGMA {pragma}")
            create_schema(journal)
            through = self._facts(journal)
            checkpoint = self._checkpoint(through)
            taken = self._above(through)
            journal.execute("BEGIN")
            _put_state(journal, self._state, taken)
            if checkpoint is not None:
                _put_version(journal, checkpoint)
            journal.execute("COMMIT")
        sync(file)
        take_over(self._store, taken)
        file.rename(journal_path(self._data))
        sync(self._data)
        log.info(
            "restored: facts through %d, %s; going on above epoch %d and generation %d",
            through,
            "no checkpoint" if checkpoint is None else checkpoint.path.name,
            taken.epoch,
            taken.generation,
        )

    def _facts(self, journal: sqlite3.Connection) -> int:
        """Loads all segments; the last position."""
        file, through, told = self._aside / "segment.gz", 0, time.monotonic()
        for segment in self._chain:
            self._store.get_file(segment.name, file)
            try:
                load(journal, file, segment)
            except ValueError as error:
                if segment != self._chain[-1]:
                    raise StoreError(f"{segment.name} in the store is torn: {error}") from error
                log.warning("%s, the newest in the store, is torn and passed over: %s", segment.name, error)
                break
            through = segment.last
            if time.monotonic() - told >= _TOLD_EVERY_S:
                told = time.monotonic()
                log.info("restoring the journal: %d of %d positions", through, end_of(self._chain))
        return through

    def _checkpoint(self, through: int) -> Checkpoint | None:
        """Fetches the newest checkpoint that knows no more than the journal."""
        folder = CheckpointFolder(self._data / "checkpoints")
        for stored in reversed(stored_checkpoints(self._store)):
            if not self._fits(stored.manifest, through):
                log.warning(
                    "checkpoint %s in the store is passed over: it is at %d of journal %s, version %s",
                    stored.path.name,
                    stored.manifest.journal_cursor,
                    stored.manifest.journal_id,
                    stored.manifest.version,
                )
                continue
            here = {checkpoint.path.name: checkpoint for checkpoint in folder.all()}
            log.info("restoring checkpoint %s", stored.path.name)
            return here.get(stored.path.name) or fetch(self._store, stored, folder)
        return None

    def _fits(self, manifest: Manifest, through: int) -> bool:
        """Whether it has learned from these facts, and from no others."""
        own = manifest.journal_id == self._state.meta["journal_id"] and manifest.journal_cursor <= through
        generation = PolicyVersion.parse(manifest.version).generation
        return own and not any(
            generation < taken.generation and manifest.journal_cursor > taken.cursor
            for taken in self._takeovers
        )

    def _above(self, through: int) -> Takeover:
        """Above everything that may have been given out."""
        epochs = [int(self._state.meta["epoch"]), *(t.epoch for t in self._takeovers)]
        epochs += [segment.epoch for segment in self._chain]
        generations = [row[0] for row in self._state.generations] + [t.generation for t in self._takeovers]
        return Takeover(max(epochs) + JUMP, max(generations, default=0) + JUMP, through)


def _put_state(journal: sqlite3.Connection, state: JournalState, taken: Takeover) -> None:
    counted = journal.execute("SELECT kind, count(*) FROM facts GROUP BY kind").fetchall()
    meta = {**state.meta, "epoch": str(taken.epoch), "counts": json.dumps(dict(counted))}
    journal.execute("DELETE FROM meta")
    journal.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    journal.execute("DELETE FROM sqlite_sequence WHERE name = 'facts'")
    journal.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('facts', ?)", (taken.cursor + JUMP,))
    journal.executemany("INSERT INTO domains VALUES (?, ?, ?)", state.domains)
    journal.executemany("INSERT INTO generations VALUES (?, ?, ?)", _rows(state.generations))
    journal.executemany("INSERT INTO actors VALUES (?, ?, ?)", _rows(state.actors))
    journal.executemany("INSERT INTO not_kept VALUES (?, ?)", _rows(state.not_kept))
    now_ms = time.time_ns() // 1_000_000
    journal.execute("INSERT INTO generations VALUES (?, 'restore', ?)", (taken.generation, now_ms))


def _put_version(journal: sqlite3.Connection, checkpoint: Checkpoint) -> None:
    """The list of versions begins anew with the one that the checkpoint holds: it can be gone back to."""
    manifest = checkpoint.manifest
    version = PolicyVersion.parse(manifest.version)
    numbers = (
        version.generation,
        version.number,
        manifest.saved_ms,
        manifest.journal_cursor,
        manifest.updates,
    )
    journal.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?, ?, '', ?, '')", (*numbers, str(checkpoint.path))
    )


def _rows(table: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
    return [tuple(row) for row in table]
