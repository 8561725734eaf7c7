"""Checkpoints in a store: files first, the manifest last, LATEST after it. Nothing is renamed there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from turnwise_learner.store.objects import ObjectStore
from turnwise_learner.trainer.checkpoints import (
    LATEST,
    MANIFEST,
    Checkpoint,
    CheckpointFolder,
    Manifest,
    complete_in,
    kept,
)

log = logging.getLogger(__name__)

FOLDER = "checkpoints"


def stored_checkpoints(store: ObjectStore) -> list[Checkpoint]:
    """The complete checkpoints in a store, oldest first; their paths are names in it.

    Raises:
        OSError: The store is away.
    """
    sizes, found = store.sizes(FOLDER), []
    for name in (path.removesuffix(f"/{MANIFEST}") for path in sizes if path.endswith(f"/{MANIFEST}")):
        try:
            manifest = Manifest.from_json(store.get(f"{FOLDER}/{name}/{MANIFEST}"))
        except ValueError as error:
            log.warning("checkpoint %s in the store is passed over: %s", name, error)
            continue
        torn = [file for file, size in manifest.files.items() if sizes.get(f"{name}/{file}") != size]
        if torn:
            log.warning("checkpoint %s in the store is passed over: %s is not whole", name, torn[0])
        else:
            found.append(Checkpoint(Path(name), manifest))
    return sorted(found, key=lambda c: (c.manifest.saved_ms, c.path.name))


def fetch(store: ObjectStore, checkpoint: Checkpoint, folder: CheckpointFolder) -> Checkpoint:
    """Copies a stored checkpoint into a data folder, where it becomes the latest."""
    name = checkpoint.path.name

    def fill(aside: Path) -> None:
        for file in checkpoint.manifest.files:
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            store.get_file(f"{FOLDER}/{name}/{file}", aside / file)

    return folder.add(name, replace(checkpoint.manifest, files={}), fill)


class CheckpointCopies:
    """The copies of a data folder's checkpoints. Used by one thread.

    Args:
        store: Where to.
        root: The data folder's checkpoints.
        keep_last: Kept in the store: so many of the newest, one a day, and the pinned ones.
        keep_days: Days of which the newest is kept.
    """

    def __init__(self, store: ObjectStore, root: Path, keep_last: int, keep_days: int = 30) -> None:
        self._store, self._root = store, root
        self._keep_last, self._keep_days = keep_last, keep_days
        self._stored = {checkpoint.path.name: checkpoint for checkpoint in stored_checkpoints(store)}
        self._seen_ns = 0
        self.newest = list(self._stored)[-1] if self._stored else ""
        """Name of the newest in the store; empty: none."""

    @property
    def behind(self) -> bool:
        """Whether there may be something to copy."""
        return _modified_ns(self._root / LATEST) != self._seen_ns

    def copy(self, journaled_through: int) -> None:
        """Copies the newest checkpoint and the pinned ones, unless the store has them.

        Args:
            journaled_through: The journal's last position in the store: a checkpoint goes there after it.

        Raises:
            OSError: The store is away.
        """
        changed_ns = _modified_ns(self._root / LATEST)
        missing = list(self._missing())
        for checkpoint in missing:
            if checkpoint.manifest.journal_cursor <= journaled_through:
                self._copy_unless_gone(checkpoint)
        if all(checkpoint.path.name in self._stored for checkpoint in missing):
            self._seen_ns = changed_ns

    def _missing(self) -> Iterator[Checkpoint]:
        """Newest first."""
        local = complete_in(self._root)[::-1]
        for index, checkpoint in enumerate(local):
            stored = self._stored.get(checkpoint.path.name)
            pinned = checkpoint.manifest.pinned
            wanted = (index == 0 or pinned) if stored is None else pinned and not stored.manifest.pinned
            if wanted:
                yield checkpoint

    def _copy_unless_gone(self, checkpoint: Checkpoint) -> None:
        try:
            self._copy(checkpoint)
        except OSError:
            if checkpoint.path.exists():
                raise
            log.info("checkpoint %s made room for newer ones before it was copied", checkpoint.path.name)

    def _copy(self, checkpoint: Checkpoint) -> None:
        name = checkpoint.path.name
        files = {
            str(path.relative_to(checkpoint.path)): path.stat().st_size
            for path in sorted(checkpoint.path.rglob("*"))
            if path.is_file() and path != checkpoint.path / MANIFEST
        }
        if name not in self._stored:
            for file in files:
                self._store.put_file(f"{FOLDER}/{name}/{file}", checkpoint.path / file)
            (checkpoint.path / MANIFEST).stat()  # still there: so were all its files when they were listed
        manifest = replace(checkpoint.manifest, files=files)
        self._store.put(f"{FOLDER}/{name}/{MANIFEST}", manifest.to_json().encode())
        self._stored[name] = Checkpoint(Path(name), manifest)
        newest = self._oldest_first()[-1].path.name
        if newest != self.newest:
            self._store.put(f"{FOLDER}/{LATEST}", newest.encode())
            self.newest = newest
        self._prune()

    def _oldest_first(self) -> list[Checkpoint]:
        return sorted(self._stored.values(), key=lambda c: (c.manifest.saved_ms, c.path.name))

    def _prune(self) -> None:
        """Removes those that are not kept, and what was left of a copy that never ended."""
        stay = {path.name for path in kept(self._oldest_first(), self._keep_last, self._keep_days)}
        there = {path.partition("/")[0] for path in self._store.sizes(FOLDER) if "/" in path}
        for name in there - stay:
            # First of all it is no longer complete.
            self._store.delete(f"{FOLDER}/{name}/{MANIFEST}")
            self._stored.pop(name, None)
            self._store.delete_folder(f"{FOLDER}/{name}")


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
