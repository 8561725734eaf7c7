"""The journal in a store: segments of facts, cut from the journal by position.

A segment is a gzipped SQLite file with the facts of a range of positions; together they cover all from 1 on,
without a gap. Small ones are merged into larger ones, cut anew from the journal, so that months are a hundred
objects: the parts are removed once the whole is there, and where both are, the whole counts.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
import sqlite3
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = "journal"

FULL_POSITIONS = 100_000
"""A segment of so many positions is not merged any more."""
_FULL_LEVEL = 9
_PARTS = 16
"""Segments of one level that are merged into one of the next."""
_STEP_FACTS = 2048
"""Facts copied in one read of the journal: a longer one would keep the write-ahead log from folding back."""
_STEP_PAUSE_S = 0.002
_CHUNK_BYTES = 1 << 20

_NAME = re.compile(r"facts-(\d+)-(\d+)-e(\d+)-l(\d)\.sqlite\.gz")
_COLUMNS = "seq, key, dialogue_id, kind, time_ms, actor, body"
_FACTS = (
    "facts (seq INTEGER PRIMARY KEY, key TEXT, dialogue_id TEXT, kind INTEGER, time_ms INTEGER, actor TEXT, "
    "body BLOB)"
)


@dataclass(frozen=True)
class Segment:
    """The facts from position `first` to `last`, both included."""

    first: int
    last: int
    epoch: int
    """Of the learner that wrote it."""
    level: int = 0
    """How often it was merged; 9: not to be merged."""

    @classmethod
    def parse(cls, name: str) -> Segment | None:
        """The segment of an object's name; None: it is none."""
        match = _NAME.fullmatch(name)
        return None if match is None else cls(*(int(part) for part in match.groups()))

    @property
    def name(self) -> str:
        """The object's name in the store."""
        numbers = f"{self.first:012d}-{self.last:012d}-e{self.epoch}-l{self.level}"
        return f"{FOLDER}/facts-{numbers}.sqlite.gz"

    @property
    def positions(self) -> int:
        """How many positions it covers."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Takeover:
    """A learner went on from the store, above everything that was lost."""

    epoch: int
    generation: int
    cursor: int
    """The last position that it had from the store: what an older learner wrote beyond does not count."""


def next_segments(after: int, through: int, epoch: int) -> Iterable[Segment]:
    """What is to be cut so that the positions from `after` on, up to `through`, are in the store."""
    for start in range(after, through, FULL_POSITIONS):
        last = min(start + FULL_POSITIONS, through)
        full = last - start == FULL_POSITIONS
        yield Segment(start + 1, last, epoch, _FULL_LEVEL if full else 0)


def counting(segments: Iterable[Segment], takeovers: Sequence[Takeover]) -> list[Segment]:
    """Those that were not written by a learner whose store another one had taken over."""
    return [
        segment
        for segment in segments
        if not any(segment.epoch < taken.epoch and segment.last > taken.cursor for taken in takeovers)
    ]


def chain(segments: Iterable[Segment]) -> list[Segment]:
    """The longest segments from position 1 to the first gap."""
    longest: dict[int, Segment] = {}
    for segment in segments:
        known = longest.get(segment.first)
        if known is None or (segment.last, segment.epoch) > (known.last, known.epoch):
            longest[segment.first] = segment
    found: list[Segment] = []
    while (following := longest.get(end_of(found) + 1)) is not None:
        found.append(following)
    return found


def end_of(found: Sequence[Segment]) -> int:
    """The last position of a chain."""
    return found[-1].last if found else 0


def to_merge(found: Sequence[Segment]) -> list[Segment]:
    """The newest segments of a chain, all of one level, that are to be made one; empty: none."""
    if not found or found[-1].level == _FULL_LEVEL:
        return []
    start = len(found)
    while start and found[start - 1].level == found[-1].level:
        start -= 1
    run = list(found[start:])
    enough = len(run) >= _PARTS or (len(run) > 1 and _whole(run).positions >= FULL_POSITIONS)
    return run if enough else []


def merged(parts: Sequence[Segment], epoch: int) -> Segment:
    """The segment that takes the place of its parts."""
    whole = _whole(parts)
    level = _FULL_LEVEL if whole.positions >= FULL_POSITIONS else min(parts[0].level + 1, _FULL_LEVEL)
    return Segment(whole.first, whole.last, epoch, level)


def _whole(parts: Sequence[Segment]) -> Segment:
    return Segment(parts[0].first, parts[-1].last, 0)


def cut(journal: Path, segment: Segment, target: Path) -> None:
    """Writes a segment of the journal to a file, in short reads."""
    plain = target.with_suffix(".plain")
    plain.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(plain, isolation_level=None, uri=True)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"CREATE TABLE {_FACTS}")
        connection.execute("ATTACH ? AS journal", (f"{journal.resolve().as_uri()}?mode=ro",))
        _copy_facts(connection, segment)
    with plain.open("rb") as source, gzip.open(target, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(source, packed, _CHUNK_BYTES)
    plain.unlink()


def _copy_facts(connection: sqlite3.Connection, segment: Segment) -> None:
    insert = (
        f"INSERT INTO facts SELECT {_COLUMNS} FROM journal.facts WHERE seq > ? AND seq <= ? ORDER BY seq "
        f"LIMIT {_STEP_FACTS}"
    )
    position = segment.first - 1
    while connection.execute(insert, (position, segment.last)).rowcount:
        position = connection.execute("SELECT max(seq) FROM facts").fetchone()[0]
        time.sleep(_STEP_PAUSE_S)


def load(connection: sqlite3.Connection, packed: Path, segment: Segment) -> None:
    """Puts the facts of a segment's file into a journal. The connection takes URIs.

    Raises:
        ValueError: The file is torn.
    """
    plain = packed.with_suffix(".plain")
    try:
        _unpack(packed, plain)
        connection.execute("ATTACH ? AS segment", (f"{plain.resolve().as_uri()}?mode=ro",))
        try:
            connection.execute(
                f"INSERT INTO main.facts ({_COLUMNS}) SELECT {_COLUMNS} FROM segment.facts "
                "WHERE seq >= ? AND seq <= ? ORDER BY seq",
                (segment.first, segment.last),
            )
        finally:
            connection.execute("DETACH segment")
    finally:
        plain.unlink(missing_ok=True)


def _unpack(packed: Path, plain: Path) -> None:
    try:
        with gzip.open(packed) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error
    if not plain.stat().st_size:
        raise ValueError("it is empty")
