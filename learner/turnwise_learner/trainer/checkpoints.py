"""Checkpoints in RLlib's format, complete or absent: written aside, fsynced, renamed, LATEST last."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from turnwise_actor.access.files import sync
from turnwise_actor.policy import PolicyVersion

logger = logging.getLogger(__name__)

MANIFEST = "turnwise.json"
LATEST = "LATEST"
_ASIDE = ".aside-"


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself, readable without RLlib."""

    updates: int
    journal_id: str
    journal_cursor: int
    version: str
    """The policy version that it holds, "generation.number"."""
    domain_fingerprint: str
    network: str
    """The network's shape, a NetworkSpec as JSON."""
    saved_ms: int
    pinned: bool = False
    counted: dict[str, int] = field(default_factory=dict)
    """What it holds and has counted, for `turnwise ledger`: rows, evicted, turns, rated_turns, held."""
    files: dict[str, int] = field(default_factory=dict)
    """In a store: sizes of its other files, bytes."""

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """The manifest in a text.

        Raises:
            ValueError: It is no manifest.
        """
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(str(error)) from error

    def to_json(self) -> str:
        """As it lies in the checkpoint."""
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder."""

    path: Path
    manifest: Manifest


def complete_in(root: Path) -> list[Checkpoint]:
    """Complete checkpoints of a folder, oldest first."""
    found = []
    for manifest_path in root.glob(f"step-*/{MANIFEST}"):
        try:
            found.append(Checkpoint(manifest_path.parent, Manifest.from_json(manifest_path.read_text())))
        except FileNotFoundError:  # it has just made room for newer ones
            continue
        except ValueError as error:
            logger.warning("checkpoint %s is left out: %s", manifest_path.parent.name, error)
    return sorted(found, key=lambda c: (c.manifest.saved_ms, c.path.name))


def kept(found: Sequence[Checkpoint], keep_last: int, keep_days: int) -> set[Path]:
    """Which of the checkpoints, oldest first, are kept: the newest, the newest of each day, the pinned."""
    newest_of_day = {c.manifest.saved_ms // 86_400_000: c.path for c in found}
    days = sorted(newest_of_day)[-keep_days:]
    newest = {c.path for c in found[-keep_last:]}
    return newest | {newest_of_day[day] for day in days} | {c.path for c in found if c.manifest.pinned}


class CheckpointFolder:
    """All checkpoints of a data folder.

    Kept: the newest `keep_last`, the newest of each of the last `keep_days` days, and every pinned one.
    """

    def __init__(self, root: Path, keep_last: int = 5, keep_days: int = 30) -> None:
        self.root = root
        self._keep_last, self._keep_days = keep_last, keep_days
        root.mkdir(parents=True, exist_ok=True)
        for aside in root.glob(f"{_ASIDE}*"):  # of a process that was killed while it wrote or removed
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()

    def save(self, algorithm: Any, version: PolicyVersion, fingerprint: str, pin: bool = False) -> Checkpoint:
        """Saves the algorithm; one that is already saved as it is now is not written twice."""
        manifest = Manifest(
            updates=algorithm.learner.updates,
            journal_id=algorithm.env_runner.journal_id,
            journal_cursor=algorithm.env_runner.cursor,
            version=str(version),
            domain_fingerprint=fingerprint,
            network=algorithm.module.spec.to_json(),
            saved_ms=time.time_ns() // 1_000_000,
            pinned=pin,
            counted={
                "rows": len(algorithm.replay),
                "evicted": algorithm.replay.evicted,
                "turns": algorithm.env_runner.counters["turns"],
                "rated_turns": algorithm.env_runner.counters["rated_turns"],
                "held": algorithm.env_runner.held,
            },
        )
        name = f"step-{manifest.updates:09d}-fact-{manifest.journal_cursor:09d}-v{version}"
        path = self.root / name
        if path.exists():
            return self._again(path, pin)
        saved = self.add(name, manifest, lambda aside: algorithm.save_to_path(str(aside)))
        self._prune()
        return saved

    def add(self, name: str, manifest: Manifest, fill: Callable[[Path], object]) -> Checkpoint:
        """Adds the checkpoint that `fill` writes into a new folder; it becomes the latest."""
        path, aside = self.root / name, self.root / f"{_ASIDE}{name}"
        fill(aside)
        (aside / MANIFEST).write_text(manifest.to_json())
        _sync_tree(aside)
        aside.rename(path)
        sync(self.root)
        self._point_latest_at(path)
        return Checkpoint(path, manifest)

    def all(self) -> list[Checkpoint]:
        """Complete checkpoints, oldest first."""
        return complete_in(self.root)

    def newest_first(self) -> list[Checkpoint]:
        """The one that LATEST names, then the others by age."""
        found = self.all()[::-1]
        latest = self.latest_name()
        return sorted(found, key=lambda checkpoint: checkpoint.path.name != latest)

    def latest_name(self) -> str:
        """What LATEST names; empty: nothing was ever saved."""
        try:
            return (self.root / LATEST).read_text().strip()
        except FileNotFoundError:
            return ""

    def _again(self, path: Path, pin: bool) -> Checkpoint:
        manifest = Manifest.from_json((path / MANIFEST).read_text())
        if pin and not manifest.pinned:
            manifest = replace(manifest, pinned=True)
            _write_synced(path / MANIFEST, manifest.to_json())
        self._point_latest_at(path)
        return Checkpoint(path, manifest)

    def _point_latest_at(self, path: Path) -> None:
        _write_synced(self.root / LATEST, path.name)

    def _prune(self) -> None:
        found = self.all()
        stay = kept(found, self._keep_last, self._keep_days)
        for checkpoint in found:
            if checkpoint.path not in stay:
                # Renamed first: a half-removed folder never looks like a checkpoint.
                doomed = self.root / f"{_ASIDE}{checkpoint.path.name}"
                checkpoint.path.rename(doomed)
                shutil.rmtree(doomed)


def _write_synced(path: Path, text: str) -> None:
    aside = path.with_name(f"{_ASIDE}{path.name}")
    aside.write_text(text)
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def _sync_tree(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))
