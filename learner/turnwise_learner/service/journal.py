"""The journal's only writer: group commit into SQLite, durable before anything is answered.

A submission lives so: `submit` puts it into the queue (event loop), the writer thread takes everything that
arrived while the last commit ran, writes it in one transaction and commits (WAL, `synchronous=FULL`: the
commit returns after the fsync), then the event loop learns of it and resolves the submissions' futures.
"""

import asyncio
import fcntl
import json
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from turnwise.v1 import training_pb2
from turnwise_learner.journal import JournalError, add_sequence_tables, create_schema, read_meta
from turnwise_learner.service.facts import FactRow, to_rows
from turnwise_learner.service.sequences import note_actor, note_not_kept

log = logging.getLogger(__name__)

T = TypeVar("T")

_ROW_OVERHEAD_BYTES = 512
_INSERT = "INSERT OR IGNORE INTO facts (key, dialogue_id, kind, time_ms, actor, body) VALUES "
_ROWS_A_STATEMENT = 64
"""Between two statements the event loop may take the interpreter's lock, and keep it for milliseconds."""


class JournalLock:
    """Keeps a second learner off the journal, for as long as this process lives.

    Raises:
        JournalError: Another process holds the lock.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise JournalError(
                f"another learner (pid {holder}) holds {path}: one learner a journal"
            ) from None
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Lets another learner in."""
        os.close(self._file)


class Appended(NamedTuple):
    """What became of a batch of facts."""

    cursor: int
    """The highest position among those that can be journaled; of none, the journal's end."""
    refused: list[training_pb2.Refused]


class _Tally(NamedTuple):
    cursor: int
    counts: dict[int, int]


class _Submission(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    future: "asyncio.Future[Any]"
    weight_bytes: int


class Journal:
    """Opens the journal for writing, creating it where missing, and begins a new epoch.

    Made and used in the event loop; `close` commits what was submitted. Hold the `JournalLock` first.

    Raises:
        JournalError: The file is no journal, or of another schema.
    """

    def __init__(self, path: Path, max_pending_bytes: int = 32 << 20) -> None:
        self._path = path
        self._max_pending_bytes = max_pending_bytes
        self._connection = _open(path)
        meta = read_meta(self._connection)
        add_sequence_tables(self._connection)
        self.journal_id: str = meta["journal_id"]
        self.epoch = int(meta["epoch"]) + 1
        self._written = self._tally = _Tally(_last_cursor(self._connection), _counts(meta))
        set_meta(self._connection, "epoch", str(self.epoch))
        self._listeners: list[Callable[[int], None]] = []
        self._pending_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Submission | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="journal-writer", daemon=True)
        self._thread.start()

    @property
    def last_cursor(self) -> int:
        """Position of the last committed fact."""
        return self._tally.cursor

    @property
    def counts(self) -> dict[int, int]:
        """Committed facts by kind."""
        return self._tally.counts

    def listen(self, listener: Callable[[int], None]) -> None:
        """Calls `listener(cursor)` in the event loop after every commit that added facts."""
        self._listeners.append(listener)

    async def append(self, rows: Sequence[FactRow]) -> "asyncio.Future[int]":
        """Submits facts once there is room for them.

        Returns:
            A future of the highest position among these facts, new or known; it is done once all of them
            are durable, and fails with JournalError when they are not.
        """
        weight = sum(len(row.body) + _ROW_OVERHEAD_BYTES for row in rows)
        await self._until_room(weight)
        return self._submit(lambda connection: _insert(connection, rows), weight)

    async def append_facts(
        self, facts: Sequence[training_pb2.Fact], actor: str, size_bytes: int
    ) -> "asyncio.Future[Appended]":
        """As `append`, of facts that the writer's thread looks at first: the event loop has better to do."""
        weight = size_bytes + _ROW_OVERHEAD_BYTES * len(facts)
        await self._until_room(weight)
        return self._submit(lambda connection: _append(connection, facts, actor), weight)

    def note_actor(self, report: training_pb2.ActorReport, address: str) -> None:
        """Keeps through which number an actor says that its facts are in the journal."""
        noted = self.submit(lambda connection: note_actor(connection, report, address))
        noted.add_done_callback(lambda future: future.exception())  # nobody waits; the writer has logged it

    def submit(self, work: Callable[[sqlite3.Connection], T]) -> "asyncio.Future[T]":
        """Runs `work` in the next transaction; the future is done after its commit."""
        return self._submit(work, 0)

    def bytes(self) -> int:
        """Size of the journal on disk, its write-ahead log included."""
        paths = (self._path, self._path.with_name(self._path.name + "-wal"))
        return sum(path.stat().st_size for path in paths if path.exists())

    async def close(self) -> None:
        """Commits what was submitted, folds the write-ahead log back, lets go of the file."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _until_room(self, weight: int) -> None:
        while self._pending_bytes > 0 and self._pending_bytes + weight > self._max_pending_bytes:
            self._room.clear()
            await self._room.wait()

    def _submit(self, work: Callable[[sqlite3.Connection], T], weight: int) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self._loop.create_future()
        self._pending_bytes += weight
        self._queue.put(_Submission(work, future, weight))
        return future

    def _write(self) -> None:
        """The writer thread."""
        closing = False
        while not closing:
            submissions, closing = self._take()
            if submissions:
                self._commit(submissions)
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def _take(self) -> tuple[list[_Submission], bool]:
        """Waits for one submission, then takes all there are; True: nothing comes after these."""
        item = self._queue.get()
        submissions = []
        while item is not None:
            submissions.append(item)
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return submissions, False
        return submissions, True

    def _commit(self, submissions: list[_Submission]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [submission.work(self._connection) for submission in submissions]
            tally = self._count_new()
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 every submitter gets it; the writer must go on
            log.error("the journal could not commit %d submissions: %s", len(submissions), error)
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            failure = JournalError(f"the journal could not commit: {error}")
            self._tell(lambda: self._failed(submissions, failure))
        else:
            self._written = tally
            self._tell(lambda: self._committed(submissions, results, tally))

    def _count_new(self) -> _Tally:
        """The tally as it is with the open transaction."""
        cursor = _last_cursor(self._connection)
        if cursor == self._written.cursor:
            return self._written
        query = "SELECT kind, count(*) FROM facts WHERE seq > ? GROUP BY kind"
        counts = dict(self._written.counts)
        for kind, number in self._connection.execute(query, (self._written.cursor,)).fetchall():
            counts[kind] = counts.get(kind, 0) + number
        set_meta(self._connection, "counts", json.dumps(counts))
        return _Tally(cursor, counts)

    def _tell(self, news: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(news)
        except RuntimeError:
            log.warning("the event loop ended before the journal's last commit was told")

    def _committed(self, submissions: list[_Submission], results: list[Any], tally: _Tally) -> None:
        grew = tally.cursor > self._tally.cursor
        self._tally = tally
        if grew:
            for listener in self._listeners:
                listener(tally.cursor)
        for submission, result in zip(submissions, results, strict=True):
            if not submission.future.done():
                submission.future.set_result(result)
        self._make_room(submissions)

    def _failed(self, submissions: list[_Submission], error: JournalError) -> None:
        for submission in submissions:
            if not submission.future.done():
                submission.future.set_exception(error)
        self._make_room(submissions)

    def _make_room(self, submissions: list[_Submission]) -> None:
        self._pending_bytes -= sum(submission.weight_bytes for submission in submissions)
        self._room.set()


def _open(path: Path) -> sqlite3.Connection:
    new = not path.exists()
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        if new or not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            create_schema(connection)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise JournalError(f"{path} cannot be opened as a journal: {error}") from error
    return connection


def _last_cursor(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(seq), 0) FROM facts").fetchone()[0])


def _counts(meta: dict[str, str]) -> dict[int, int]:
    """Facts by kind: kept in `meta` with every commit, since counting reads the whole journal."""
    return {int(kind): number for kind, number in json.loads(meta.get("counts", "{}")).items()}


def set_meta(connection: sqlite3.Connection, name: str, value: str) -> None:
    """Keeps a value beside the facts."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def _insert(connection: sqlite3.Connection, rows: Sequence[FactRow]) -> int:
    """Inserts facts, known keys ignored; the highest position among them."""
    before = connection.total_changes
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        some = rows[start : start + _ROWS_A_STATEMENT]
        values = ", ".join(("(?, ?, ?, ?, ?, ?)",) * len(some))
        connection.execute(_INSERT + values, [column for row in some for column in row])
    if connection.total_changes > before:
        return _last_cursor(connection)
    query = "SELECT coalesce(max(seq), 0) FROM facts WHERE key IN (SELECT value FROM json_each(?))"
    return int(connection.execute(query, (json.dumps([row.key for row in rows]),)).fetchone()[0])


def _append(connection: sqlite3.Connection, facts: Sequence[training_pb2.Fact], actor: str) -> Appended:
    rows, refused = to_rows(facts, actor)
    before = connection.total_changes
    cursor = _insert(connection, rows) if rows else _last_cursor(connection)
    if connection.total_changes - before < len(facts):
        note_not_kept(connection, facts)
    return Appended(cursor, refused)


def now_ms() -> int:
    """This machine's clock, milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
