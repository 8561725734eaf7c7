"""The least that durable facts cost on this disk: SQLite without a service, and a bare append."""

import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from turnwise_learner.journal import create_schema
from turnwise_learner.service.facts import FactRow

_PAGE = bytes(4096)
_INSERT = (
    "INSERT OR IGNORE INTO facts (key, dialogue_id, kind, time_ms, actor, body) VALUES (?, ?, ?, ?, ?, ?)"
)


class StraightSqlite:
    """A journal's tables and indexes, written by one loop: WAL, `synchronous=FULL`, nothing counted."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "journal_size_limit = 67108864"):
            self._connection.execute(f"PRAGMA {pragma}")
        create_schema(self._connection)

    def write(self, rows: Sequence[FactRow], groups: Iterable[int]) -> None:
        """A transaction a group; the last ends with the rows."""
        at = 0
        for group in groups:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(_INSERT, rows[at : at + group])
            self._connection.execute("COMMIT")
            at += group

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def __enter__(self) -> "StraightSqlite":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BareAppend:
    """A file that grows by 4 KB at a time, each made durable."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def seconds(self) -> float:
        """That one append and its fdatasync took."""
        began = time.perf_counter()
        os.write(self._file, _PAGE)
        os.fdatasync(self._file)
        return time.perf_counter() - began

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)

    def __enter__(self) -> "BareAppend":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
