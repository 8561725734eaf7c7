"""Generations and policy versions, as the journal's tables hold them.

Every function takes the journal's connection and runs inside one of its transactions, see
`Journal.submit`.
"""

import json
import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.policy import PolicyVersion
from turnwise_learner.service.journal import now_ms

log = logging.getLogger(__name__)

MANIFEST = "turnwise.json"
"""What a checkpoint says of itself."""

_COLUMNS = "generation, number, published_ms, learned_through, updates, checkpoint, cause"


def add_domain(connection: sqlite3.Connection, fingerprint: str, text: str) -> None:
    """Keeps a domain beside the facts written under it; its phrasing may have changed since."""
    connection.execute(
        "INSERT INTO domains VALUES (?, ?, ?) ON CONFLICT (fingerprint) DO UPDATE SET json = excluded.json",
        (fingerprint, text, now_ms()),
    )


def begin_generation(connection: sqlite3.Connection, cause: str, above: int) -> int:
    """Journals a new generation, greater than every earlier one and than `above`."""
    query = "SELECT max(coalesce((SELECT max(generation) FROM generations), 0), ?) + 1"
    generation = int(connection.execute(query, (above,)).fetchone()[0])
    connection.execute("INSERT INTO generations VALUES (?, ?, ?)", (generation, cause, now_ms()))
    return generation


def newest_generation(connection: sqlite3.Connection) -> int:
    """The generation that was begun last; 0 before the first."""
    return int(connection.execute("SELECT coalesce(max(generation), 0) FROM generations").fetchone()[0])


def trainer_generation(connection: sqlite3.Connection) -> int:
    """The generation that the newest trainer process began with; 0 before the first."""
    query = "SELECT coalesce(max(generation), 0) FROM generations WHERE cause != 'rollback'"
    return int(connection.execute(query).fetchone()[0])


def add_version(connection: sqlite3.Connection, published: training_pb2.PolicyPublished) -> None:
    """Records a published version; one that is known stays as it is."""
    version = published.version
    row = (version.generation, version.number, now_ms(), published.learned_through, published.updates)
    connection.execute(
        "INSERT OR IGNORE INTO versions VALUES (?, ?, ?, ?, ?, ?, NULL, ?)",
        (*row, published.file, published.cause),
    )


def add_checkpoint(connection: sqlite3.Connection, version: PolicyVersion, path: str) -> bool:
    """Records the checkpoint that holds a version; False: the version is not recorded."""
    cursor = connection.execute(
        "UPDATE versions SET checkpoint = ? WHERE generation = ? AND number = ?",
        (path, version.generation, version.number),
    )
    return cursor.rowcount > 0


def record(
    published: Iterable[training_pb2.PolicyPublished],
    held: PolicyVersion | None,
    checkpoint: str,
    connection: sqlite3.Connection,
) -> bool:
    """Records versions, and the checkpoint that holds one; whether that one is recorded by now."""
    for each in published:
        add_version(connection, each)
    return held is not None and add_checkpoint(connection, held, checkpoint)


def version_held(checkpoint: Path) -> PolicyVersion | None:
    """The version that a checkpoint folder says it holds; None: it says none."""
    try:
        return PolicyVersion.parse(json.loads((checkpoint / MANIFEST).read_text())["version"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("checkpoint %s does not say which version it holds: %r", checkpoint, error)
        return None


def recent_versions(connection: sqlite3.Connection, limit: int) -> list[training_pb2.VersionInfo]:
    """The newest versions, newest first; `checkpoint` is set where the folder is still there."""
    query = f"SELECT {_COLUMNS} FROM versions ORDER BY generation DESC, number DESC LIMIT ?"
    return [_info(row) for row in connection.execute(query, (limit,)).fetchall()]


def checkpoints(connection: sqlite3.Connection) -> dict[PolicyVersion, str]:
    """Checkpoint folders of all versions that can be gone back to, newest first."""
    query = "SELECT generation, number, checkpoint FROM versions WHERE checkpoint IS NOT NULL "
    rows = connection.execute(query + "ORDER BY generation DESC, number DESC").fetchall()
    return {PolicyVersion(*version): path for *version, path in rows if Path(path).is_dir()}


def _info(row: tuple[int, int, int, int, int, str | None, str | None]) -> training_pb2.VersionInfo:
    generation, number, published_ms, learned_through, updates, checkpoint, cause = row
    return training_pb2.VersionInfo(
        version=dialogue_pb2.PolicyVersion(generation=generation, number=number),
        published_ms=published_ms,
        learned_through=learned_through,
        updates=updates,
        checkpoint=checkpoint if checkpoint and Path(checkpoint).is_dir() else "",
        cause=cause or "",
    )
