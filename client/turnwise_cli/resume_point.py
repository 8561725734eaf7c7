"""Where a learner would go on from: its newest checkpoint, and the facts that came after it."""

import datetime
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnwise_learner.journal import JournalReader, journal_path

MANIFEST = "turnwise.json"
"""In each checkpoint folder: `journal_id`, `journal_cursor`, `updates`, `version`, `saved_ms`."""


@dataclass(frozen=True)
class ResumePoint:
    """What a restart would find."""

    checkpoint: str
    """Folder's name; empty: there is no checkpoint, everything is learned again."""
    cursor: int
    """Facts up to here are in the checkpoint; 0 without one."""
    updates: int
    version: str
    """The policy version that the checkpoint holds; empty without one."""
    journal_cursor: int
    facts_to_replay: int
    """Those after the checkpoint's cursor; fewer than the cursors differ by, which leave gaps."""
    last_generation: int
    generations: tuple[str, ...]
    """One line each, oldest first."""
    problems: tuple[str, ...]
    """What is wrong with LATEST or with the checkpoint."""


def resume_point(data: Path, journal: JournalReader) -> ResumePoint:
    """Reads a data folder, changing nothing."""
    name, manifest, problems = newest_checkpoint(data / "checkpoints")
    last, cursor = journal.last_cursor(), int(manifest.get("journal_cursor", 0))
    if manifest and manifest.get("journal_id") != journal.journal_id:
        problems.append(
            f"{name} belongs to journal {manifest.get('journal_id')}, not to {journal.journal_id}"
        )
    elif cursor > last:
        problems.append(f"{name} has learned through {cursor}, but the journal ends at {last}")
    return ResumePoint(
        checkpoint=name,
        cursor=cursor,
        updates=int(manifest.get("updates", 0)),
        version=str(manifest.get("version", "")),
        journal_cursor=last,
        facts_to_replay=_facts_after(journal_path(data), cursor),
        last_generation=journal.last_generation(),
        generations=_generations(journal_path(data)),
        problems=tuple(problems),
    )


def newest_checkpoint(folder: Path) -> tuple[str, dict[str, Any], list[str]]:
    """Name and manifest of the checkpoint that LATEST names, else of the newest; and what was wrong."""
    manifests = {path.parent.name: _manifest(path) for path in folder.glob(f"step-*/{MANIFEST}")}
    complete = {name: manifest for name, manifest in manifests.items() if manifest}
    try:
        latest = (folder / "LATEST").read_text().strip()
    except FileNotFoundError:
        latest = ""
    problems = []
    if latest and latest not in complete:
        problems.append(f"LATEST names {latest}, which is not complete")
    if latest in complete:
        return latest, complete[latest], problems
    if not complete:
        return "", {}, problems
    newest = max(complete, key=lambda name: int(complete[name].get("saved_ms", 0)))
    return newest, complete[newest], problems


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _facts_after(path: Path, cursor: int) -> int:
    [(count,)] = _read(path, "SELECT count(*) FROM facts WHERE seq > ?", cursor)
    return int(count)


def _generations(path: Path) -> tuple[str, ...]:
    rows = _read(path, "SELECT generation, cause, started_ms FROM generations ORDER BY generation")
    return tuple(f"generation {number}: {cause}, {_time(started)}" for number, cause, started in rows)


def _read(path: Path, query: str, *parameters: int) -> list[Any]:
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query, parameters).fetchall()


def _time(milliseconds: int) -> str:
    return datetime.datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S")
