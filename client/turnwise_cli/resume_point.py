"""Where a learner would go on from: its newest checkpoint, and the facts that came after it."""

import datetime
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from turnwise_learner.journal import JournalReader, journal_path

CHECKPOINT_STATE = "turnwise.json"
"""Beside the checkpoint's components: `journal_id`, `journal_cursor`, `updates`."""


@dataclass(frozen=True)
class ResumePoint:
    """What a restart would find. None: it cannot be told."""

    checkpoint: str
    """Folder's name; empty: there is no checkpoint."""
    cursor: int | None
    """Facts up to here are in the checkpoint; 0 without one."""
    updates: int | None
    version: str
    """The policy version that the checkpoint holds; empty: unknown."""
    journal_cursor: int
    last_generation: int
    generations: tuple[str, ...]
    """One line each, oldest first."""
    problem: str
    """Why the learner would refuse to start; empty: it would not."""

    @property
    def facts_to_replay(self) -> int:
        """At most: what lies between the checkpoint's cursor and the journal's."""
        return max(0, self.journal_cursor - (self.cursor or 0))


def resume_point(data: Path, journal: JournalReader) -> ResumePoint:
    """Reads a data folder, changing nothing."""
    folder = latest_checkpoint(data)
    generations, recorded = _recorded(journal_path(data), folder)
    cursor: int | None = 0
    updates: int | None = 0
    problem = ""
    if folder is not None:
        state = _state(folder)
        cursor, updates = recorded.get("learned_through"), recorded.get("updates")
        cursor = state.get("journal_cursor", cursor)
        updates = state.get("updates", updates)
        problem = _problem(folder, state.get("journal_id"), cursor, journal)
    return ResumePoint(
        checkpoint=folder.name if folder is not None else "",
        cursor=cursor,
        updates=updates,
        version=f"{recorded['generation']}.{recorded['number']}" if recorded else "",
        journal_cursor=journal.last_cursor(),
        last_generation=journal.last_generation(),
        generations=generations,
        problem=problem,
    )


def latest_checkpoint(data: Path) -> Path | None:
    """The folder that `checkpoints/LATEST` names; None: there is none yet."""
    latest = data / "checkpoints" / "LATEST"
    if latest.is_dir():
        return latest.resolve()
    try:
        name = latest.read_text().strip()
    except FileNotFoundError:
        return None
    return latest.parent / Path(name).name if name else None


def _problem(folder: Path, journal_id: object, cursor: int | None, journal: JournalReader) -> str:
    if not folder.is_dir():
        return f"checkpoints/LATEST names {folder.name}, which is not there"
    if journal_id is not None and journal_id != journal.journal_id:
        return f"{folder.name} belongs to journal {journal_id}, this one is {journal.journal_id}"
    if cursor is not None and cursor > journal.last_cursor():
        return f"{folder.name} has learned through {cursor}, but the journal ends at {journal.last_cursor()}"
    return ""


def _state(folder: Path) -> dict[str, int]:
    try:
        state = json.loads((folder / CHECKPOINT_STATE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}
    return state if isinstance(state, dict) else {}


def _recorded(path: Path, folder: Path | None) -> tuple[tuple[str, ...], dict[str, int]]:
    """The generations, and the newest version that a checkpoint folder is recorded with."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        rows = connection.execute(
            "SELECT generation, cause, started_ms FROM generations ORDER BY generation"
        ).fetchall()
        versions = connection.execute(
            "SELECT generation, number, learned_through, updates, checkpoint FROM versions "
            "WHERE checkpoint IS NOT NULL ORDER BY generation DESC, number DESC"
        ).fetchall()
    finally:
        connection.close()
    lines = tuple(f"generation {number} ({cause}, {_time(started)})" for number, cause, started in rows)
    for *numbers, checkpoint in versions:
        if folder is not None and Path(checkpoint).name == folder.name:
            return lines, dict(
                zip(("generation", "number", "learned_through", "updates"), numbers, strict=True)
            )
    return lines, {}


def _time(milliseconds: int) -> str:
    return datetime.datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S")
