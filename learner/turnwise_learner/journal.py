"""The journal's schema and its read side; both processes of the learner use it.

The service is the only writer (`service/journal.py`). Everyone else opens a `JournalReader`, which is
read-only and never holds a snapshot longer than one query: an open snapshot keeps SQLite from folding the
write-ahead log back, and the log then grows without bound.
"""

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from turnwise.v1 import training_pb2

SCHEMA = 1

_DIALOGUES_A_QUERY = 256
"""SQLite before 3.32 takes 999 parameters."""

STARTED, DECIDED, DELIVERED, FEEDBACK, ENDED = 1, 2, 3, 4, 5

KINDS: dict[str, int] = {
    "started": STARTED,
    "decided": DECIDED,
    "delivered": DELIVERED,
    "feedback": FEEDBACK,
    "ended": ENDED,
}
"""Names of `Fact.kind` on the wire and their number in the journal."""

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE domains (fingerprint TEXT PRIMARY KEY, json TEXT NOT NULL, added_ms INTEGER NOT NULL);
CREATE TABLE facts (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, dialogue_id TEXT NOT NULL,
  kind INTEGER NOT NULL, time_ms INTEGER NOT NULL, actor TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX facts_by_dialogue ON facts (dialogue_id, seq);
CREATE TABLE generations (generation INTEGER PRIMARY KEY, cause TEXT NOT NULL, started_ms INTEGER NOT NULL);
CREATE TABLE versions (
  generation INTEGER, number INTEGER, published_ms INTEGER, learned_through INTEGER, updates INTEGER,
  file TEXT, checkpoint TEXT, cause TEXT, PRIMARY KEY (generation, number));
"""

_SEQUENCE_TABLES = """
CREATE TABLE IF NOT EXISTS actors (
  incarnation TEXT PRIMARY KEY, address TEXT NOT NULL, journaled_through INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS not_kept (
  incarnation TEXT, sequence INTEGER, PRIMARY KEY (incarnation, sequence)) WITHOUT ROWID;
"""
"""Journals of before facts were numbered get them when a service opens them: `add_sequence_tables`."""


class JournalError(Exception):
    """The journal is missing, unreadable, or of another schema."""


def journal_path(data: Path) -> Path:
    """Where the journal of a data folder is."""
    return data / "journal.sqlite"


def create_schema(connection: sqlite3.Connection) -> None:
    """Creates the tables and a journal id, in one transaction. The connection is in autocommit mode."""
    meta = {"journal_id": uuid.uuid4().hex, "epoch": "0", "schema": str(SCHEMA)}
    meta["created_ms"] = str(time.time_ns() // 1_000_000)
    rows = ", ".join(f"('{name}', '{value}')" for name, value in meta.items())
    connection.executescript(
        f"BEGIN IMMEDIATE; {_TABLES} {_SEQUENCE_TABLES} INSERT INTO meta VALUES {rows}; COMMIT;"
    )


def add_sequence_tables(connection: sqlite3.Connection) -> None:
    """Adds what a journal of before facts were numbered lacks. The connection is in autocommit mode."""
    connection.executescript(f"BEGIN IMMEDIATE; {_SEQUENCE_TABLES} COMMIT;")


def read_meta(connection: sqlite3.Connection) -> dict[str, str]:
    """The `meta` table.

    Raises:
        JournalError: It has no such table, or its schema is not this program's.
    """
    try:
        meta = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    except sqlite3.DatabaseError as error:
        raise JournalError(f"not a Turnwise journal: {error}") from error
    if meta.get("schema") != str(SCHEMA):
        raise JournalError(f"journal schema is {meta.get('schema')!r}; this version reads {SCHEMA}")
    return meta


class Row(NamedTuple):
    """One fact as it lies in the journal."""

    seq: int
    """Journal position, from 1, increasing; gaps are possible."""
    dialogue_id: str
    kind: int
    """One of STARTED to ENDED."""
    time_ms: int
    """The actor's clock."""
    fact: training_pb2.Fact
    actor: str
    """Address of the actor that sent it; may be empty."""


def number_of(fact: training_pb2.Fact) -> tuple[str, int]:
    """The actor process that took a fact up, as it writes itself, and its number there; 0: not numbered."""
    return f"{fact.incarnation:016x}", fact.sequence


@dataclass(frozen=True)
class JournalState:
    """What a journal holds beside its facts and its list of versions."""

    meta: dict[str, str]
    domains: list[tuple[str, str, int]]
    generations: list[tuple[int, str, int]]
    actors: list[tuple[str, str, int]] = field(default_factory=list)
    """Incarnation, address, and the number up to which its facts are in the journal."""
    not_kept: list[tuple[str, int]] = field(default_factory=list)
    """Incarnation and number of facts that have no row: they were refused, or known by their key."""


class JournalReader:
    """Reads a journal while the service writes it. Each call is one short transaction.

    May be used from any thread, one at a time.

    Raises:
        JournalError: There is no journal at this path, or it is of another schema.
    """

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        self._connection = _open_read_only(path, timeout_s)
        try:
            self._meta = read_meta(self._connection)
        except JournalError:
            self._connection.close()
            raise

    @property
    def journal_id(self) -> str:
        """Random hex digits, chosen when the journal was created."""
        return self._meta["journal_id"]

    @property
    def written(self) -> dict[int, int]:
        """Facts by kind that the service had committed when this was opened, by its own count."""
        return {int(kind): number for kind, number in json.loads(self._meta.get("counts", "{}")).items()}

    def last_cursor(self) -> int:
        """Position of the last committed fact; 0 when there is none."""
        return int(self._connection.execute("SELECT coalesce(max(seq), 0) FROM facts").fetchone()[0])

    def read_after(self, cursor: int, limit: int = 1024) -> list[Row]:
        """At most `limit` facts after `cursor`, in journal order."""
        return self._rows("WHERE seq > ? ORDER BY seq LIMIT ?", (cursor, limit))

    def dialogues(self, dialogue_ids: Sequence[str], through_seq: int) -> Iterator[Row]:
        """All facts of these dialogues up to `through_seq`, itself included; of each in journal order.

        But that they have begun, from which nothing follows for learning.
        """
        for at in range(0, len(dialogue_ids), _DIALOGUES_A_QUERY):
            some = dialogue_ids[at : at + _DIALOGUES_A_QUERY]
            # No dialogue is called "". Few lengths, so that SQLite keeps what it has made of each.
            padded = [*some, *[""] * (-len(some) % 16)]
            places = ",".join("?" * len(padded))
            chosen = f"dialogue_id IN ({places}) AND seq <= ? AND kind <> {STARTED}"
            # Left to itself, SQLite might go through the whole journal, whose order is asked for.
            where = f"INDEXED BY facts_by_dialogue WHERE {chosen} ORDER BY seq"
            yield from self._rows(where, (*padded, through_seq))

    def domain(self, fingerprint: str) -> str | None:
        """The JSON of a domain that this journal has been written under; None if it never was."""
        row = self._connection.execute(
            "SELECT json FROM domains WHERE fingerprint = ?", (fingerprint,)
        ).fetchone()
        return None if row is None else str(row[0])

    def newest_domain(self) -> str | None:
        """The JSON of the domain that was added last."""
        row = self._connection.execute(
            "SELECT json FROM domains ORDER BY added_ms DESC, rowid DESC"
        ).fetchone()
        return None if row is None else str(row[0])

    def last_generation(self) -> int:
        """The newest generation; 0 before the first."""
        return int(
            self._connection.execute("SELECT coalesce(max(generation), 0) FROM generations").fetchone()[0]
        )

    def state(self) -> JournalState:
        """All but the facts and the list of versions, from one moment."""
        self._connection.execute("BEGIN")
        try:
            return JournalState(
                dict(self._connection.execute("SELECT name, value FROM meta").fetchall()),
                self._connection.execute("SELECT * FROM domains ORDER BY rowid").fetchall(),
                self._connection.execute("SELECT * FROM generations ORDER BY generation").fetchall(),
                *self.sequences(),
            )
        finally:
            self._connection.execute("COMMIT")

    def sequences(self) -> tuple[list[tuple[str, str, int]], list[tuple[str, int]]]:
        """`JournalState.actors` and `.not_kept`; of a journal of before facts were numbered, nothing."""
        if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'not_kept'").fetchone():
            return [], []
        actors = self._connection.execute("SELECT * FROM actors ORDER BY incarnation").fetchall()
        return actors, self._connection.execute("SELECT * FROM not_kept").fetchall()

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def __enter__(self) -> "JournalReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, where: str, parameters: tuple[object, ...]) -> list[Row]:
        query = f"SELECT seq, dialogue_id, kind, time_ms, body, actor FROM facts {where}"
        # fetchall ends the read transaction before anything is parsed.
        rows = self._connection.execute(query, parameters).fetchall()
        parse = training_pb2.Fact.FromString
        return [
            Row(seq, dialogue_id, kind, time_ms, parse(body), actor)
            for seq, dialogue_id, kind, time_ms, body, actor in rows
        ]


def _open_read_only(path: Path, timeout_s: float) -> sqlite3.Connection:
    if not path.exists():
        raise JournalError(f"no journal at {path}")
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,
    )
    return connection
