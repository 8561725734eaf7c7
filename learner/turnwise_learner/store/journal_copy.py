"""Copies a journal to a store while it is written: what is new, as segments; the rest as one small object."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from turnwise_learner.journal import JournalReader, JournalState
from turnwise_learner.store.errors import StoreError, StoreRefusedError
from turnwise_learner.store.objects import ObjectStore
from turnwise_learner.store.segments import (
    FOLDER,
    Segment,
    Takeover,
    chain,
    counting,
    cut,
    end_of,
    merged,
    next_segments,
    to_merge,
)

STATE = f"{FOLDER}/state.json"
TAKEOVERS = "restores"


def stored_state(store: ObjectStore) -> JournalState | None:
    """The journal's state as it was last copied; None: nothing was.

    Raises:
        StoreError: It cannot be read.
    """
    found = store.get_json(STATE)
    try:
        return None if found is None else JournalState(**found)
    except TypeError as error:
        raise StoreError(f"{STATE} in the store is not of this version: {error}") from error


def stored_segments(store: ObjectStore) -> list[Segment]:
    """All segments in the store, those that do not count among them."""
    parsed = (Segment.parse(name) for name in store.sizes(FOLDER))
    return [segment for segment in parsed if segment is not None]


def takeovers(store: ObjectStore) -> list[Takeover]:
    """Who has gone on from this store."""
    return [Takeover(**store.get_json(f"{TAKEOVERS}/{name}")) for name in sorted(store.sizes(TAKEOVERS))]


def take_over(store: ObjectStore, takeover: Takeover) -> None:
    """Says that a learner goes on from what is there; those before it stop writing."""
    store.put_json(f"{TAKEOVERS}/{takeover.epoch:012d}.json", asdict(takeover))


class JournalCopy:
    """The copy of one journal; `ship` brings it up to date. Used by one thread.

    Args:
        store: Where to.
        journal: The journal's file, written by this process.
        epoch: Of this learner.
        aside: A folder of its own for segments in the making; emptied.

    Raises on construction: StoreRefusedError: the store holds another journal, a longer one, or was taken
    over by another learner. StoreError, OSError.
    """

    def __init__(self, store: ObjectStore, journal: Path, epoch: int, aside: Path) -> None:
        self._store, self._journal, self._epoch, self._aside = store, journal, epoch, aside
        self._reader = JournalReader(journal)
        try:
            self._state = self._own_state()
            self.check_owner()
            found = counting(stored_segments(store), takeovers(store))
            self._chain = chain(found)
            self._check_length()
        except BaseException:
            self._reader.close()
            raise
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        self._remove(each for each in found if each not in self._chain and each.last <= self.through)

    @property
    def through(self) -> int:
        """The last position that is in the store."""
        return end_of(self._chain)

    def ship(self) -> None:
        """Copies what is new; returns when it is in the store.

        Raises:
            StoreRefusedError: Another learner has taken the store over.
            OSError: The store is away.
        """
        end, state = self._reader.last_cursor(), self._reader.state()
        state.meta.pop("counts", None)  # counted anew when restored; they change with every fact
        # What actors were told changes every second; those that are there say it again after a restore.
        changed = self._state is None or replace(state, actors=self._state.actors) != self._state
        if end == self.through and not changed:
            return
        self.check_owner()
        if changed:
            self._store.put_json(STATE, asdict(state))
            self._state = state
        for segment in next_segments(self.through, end, self._epoch):
            self._put(segment)
            self._chain.append(segment)
            self._merge()

    def check_owner(self) -> None:
        """Before anything is written. May be called from any thread.

        Raises:
            StoreRefusedError: Another learner has taken the store over.
        """
        newest = max((int(name.removesuffix(".json")) for name in self._store.sizes(TAKEOVERS)), default=0)
        if newest > self._epoch:
            raise StoreRefusedError(
                f"another learner has gone on from the checkpoint store, above epoch {newest}; this one is "
                f"of epoch {self._epoch} and writes no more to it. Stop one of the two: what was said to "
                "this one alone is in its data folder only"
            )

    def close(self) -> None:
        """Lets go of the journal."""
        self._reader.close()

    def _own_state(self) -> JournalState | None:
        state = stored_state(self._store)
        if state is not None and state.meta["journal_id"] != self._reader.journal_id:
            raise StoreRefusedError(
                f"the checkpoint store belongs to journal {state.meta['journal_id']}; the one here is "
                f"{self._reader.journal_id}. Name another store, or move the data folder away to go on from "
                "what is in this one; nothing in it was changed"
            )
        return state

    def _check_length(self) -> None:
        last = self._reader.last_cursor()
        if self.through > last:
            raise StoreRefusedError(
                f"the checkpoint store has facts up to {self.through}, but the journal here ends at {last}: "
                "it is an older copy. Move the data folder away to go on from the store"
            )

    def _merge(self) -> None:
        while parts := to_merge(self._chain):
            whole = merged(parts, self._epoch)
            self._put(whole)
            self._chain[-len(parts) :] = [whole]
            self._remove(parts)

    def _put(self, segment: Segment) -> None:
        file = self._aside / "segment.gz"
        cut(self._journal, segment, file)
        self._store.put_file(segment.name, file)
        file.unlink()

    def _remove(self, segments: Iterable[Segment]) -> None:
        for segment in segments:
            self._store.delete(segment.name)
