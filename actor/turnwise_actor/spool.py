"""The disk that stands in for the learner: facts fsynced here are settled, and are sent on when it is back.

A spool is a folder of segments, `00000001.facts` up, held by a lock. A segment is a magic word and then
records of length, crc32 (both little-endian uint32) and a serialized Fact. A segment is only ever
appended to, read back whole, and deleted whole once the learner has acknowledged all of it. After a crash
its torn tail, which was never promised to anyone, is cut at the last good record. The spools of processes
that are gone are taken over file by file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import math
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError

from turnwise.v1 import training_pb2
from turnwise_actor.access.files import sync
from turnwise_actor.facts import PackedFact, pack

MAGIC = b"TWSPOOL1"
_RECORD = struct.Struct("<II")
_SUFFIX = ".facts"
_RETRY_S = 1.0
_COMPLAIN_S = 10.0
"""A full disk refuses thousands of turns a second; one line in this time says so."""
T = TypeVar("T")

logger = logging.getLogger(__name__)


class SpoolFullError(Exception):
    """The spool holds as many bytes as it may, or the disk takes no more; the message says which."""


@dataclass
class _Waiting:
    """Facts handed over and not yet fsynced, and who waits for them."""

    records: bytes
    done: asyncio.Future[None]


class Spool:
    """One process's spool. Called from one event loop; its disk work runs in one thread, in order."""

    def __init__(self, parent: Path, name: str, *, max_bytes: int, segment_bytes: int) -> None:
        self._parent = parent
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self.folder, self._lock = _claim_own(parent, name)
        self._sizes = {file: file.stat().st_size for file in _segments(self.folder)}
        self._number = max((int(file.stem) for file in self._sizes), default=0)
        self._active: Path | None = None
        self._file = -1
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._refused_at = -math.inf
        self._complained_at = -math.inf
        self._flush: asyncio.Task[None] | None = None
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")

    @property
    def size_bytes(self) -> int:
        """Bytes held, those on their way to the disk included."""
        return sum(self._sizes.values()) + self._waiting_bytes

    @property
    def full(self) -> bool:
        """Whether nothing more is taken; tried again a second after something was refused."""
        refused_just_now = time.monotonic() - self._refused_at < _RETRY_S
        return refused_just_now or self.size_bytes >= self._max_bytes

    async def append(self, facts: Sequence[PackedFact]) -> None:
        """Returns when the facts are fsynced; raises SpoolFullError when they cannot be."""
        if not facts:
            return
        records = _encode(facts)
        if self.size_bytes + len(records) > self._max_bytes:
            self._refused_at = time.monotonic()
            raise SpoolFullError(
                f"the spool {self.folder} holds {self.size_bytes} bytes of at most {self._max_bytes}"
            )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(records, done))
        self._waiting_bytes += len(records)
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._flush_waiting())
        await done

    async def _flush_waiting(self) -> None:
        """Group commit: all that came while the disk was busy is written with one fsync."""
        while self._waiting:
            group, self._waiting = self._waiting, []
            try:
                written, size = await self._in_thread(self._write, b"".join(each.records for each in group))
                self._sizes[written] = size
                failure = None
            except OSError as error:
                if time.monotonic() - self._complained_at > _COMPLAIN_S:
                    logger.error("the spool %s takes nothing: %s", self.folder, error)
                    self._complained_at = time.monotonic()
                self._refused_at = time.monotonic()
                failure = SpoolFullError(f"the spool {self.folder} cannot be written: {error.strerror}")
            self._waiting_bytes -= sum(len(each.records) for each in group)
            for each in group:
                if each.done.done():
                    continue
                if failure:
                    each.done.set_exception(failure)
                else:
                    each.done.set_result(None)

    def oldest(self) -> Path | None:
        """The oldest segment; it may still be the one appended to, which `read` closes first."""
        return min(self._sizes, default=None)

    async def read(self, segment: Path) -> list[PackedFact]:
        """The facts of a segment, to which nothing is appended from now on."""
        facts, size = await self._in_thread(self._close_and_read, segment)
        self._sizes[segment] = size
        return facts

    async def remove(self, segment: Path) -> None:
        """Deletes a segment whose facts the learner has; whoever waits may be cancelled meanwhile."""
        self._sizes.pop(segment, None)
        await asyncio.shield(self._in_thread(segment.unlink))

    async def adopt(self) -> int:
        """Takes over the spools beside this one whose processes are gone; returns the number of segments."""
        taken = await self._in_thread(self._take_over, self._max_bytes - self.size_bytes)
        self._sizes.update(taken)
        return len(taken)

    async def close(self) -> None:
        """Lets go of the spool, and deletes its folder if it holds nothing."""
        if self._flush is not None:
            await self._flush
        await self._in_thread(self._close_active)
        self._disk.shutdown()
        if not self._sizes:
            _delete_folder(self.folder)
        os.close(self._lock)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *arguments)

    # Everything below runs in the spool's thread.

    def _write(self, records: bytes) -> tuple[Path, int]:
        if self._active is None:
            self._open_next()
        active, file = self._active, self._file
        assert active is not None
        before = os.fstat(file).st_size
        try:
            _write_all(file, records)
            os.fsync(file)
        except OSError:
            # What the kernel still holds of the failed write is not to be built upon.
            with contextlib.suppress(OSError):
                os.ftruncate(file, before)
            self._close_active()
            raise
        size = os.fstat(file).st_size
        if size >= self._segment_bytes:
            self._close_active()
        return active, size

    def _open_next(self) -> None:
        self._number += 1
        path = self.folder / f"{self._number:08d}{_SUFFIX}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            _write_all(file, MAGIC)
            sync(self.folder)
        except OSError:
            # Without its head nothing that follows could be read.
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        self._active, self._file = path, file

    def _close_active(self) -> None:
        if self._active is not None:
            os.close(self._file)
            self._active, self._file = None, -1

    def _close_and_read(self, segment: Path) -> tuple[list[PackedFact], int]:
        if segment == self._active:
            self._close_active()
        content = segment.read_bytes()
        facts, good = _decode(content)
        if good < len(content):
            logger.warning("%s: cut %d bytes after its last good record", segment, len(content) - good)
            os.truncate(segment, good)
        return facts, good

    def _take_over(self, room: int) -> dict[Path, int]:
        taken: dict[Path, int] = {}
        for folder in sorted(self._parent.iterdir()):
            if folder == self.folder or not (folder / "lock").exists():
                continue
            lock = _try_lock(folder)
            if lock is None:
                continue
            try:
                size = sum(file.stat().st_size for file in _segments(folder))
                if size <= room:
                    room -= size
                    taken.update(self._take_segments(folder))
                    _delete_folder(folder)
            finally:
                os.close(lock)
        return taken

    def _take_segments(self, folder: Path) -> dict[Path, int]:
        taken = {}
        for file in _segments(folder):
            self._number += 1
            target = self.folder / f"{self._number:08d}{_SUFFIX}"
            file.rename(target)
            taken[target] = target.stat().st_size
        sync(self.folder)
        if taken:
            logger.info("took over %d segments of the spool %s", len(taken), folder)
        return taken


def _encode(facts: Iterable[PackedFact]) -> bytes:
    parts = []
    for fact in facts:
        parts += [_RECORD.pack(len(fact.body), zlib.crc32(fact.body)), fact.body]
    return b"".join(parts)


def _decode(content: bytes) -> tuple[list[PackedFact], int]:
    """The facts up to the first bad record, and the size of what is good."""
    facts: list[PackedFact] = []
    if not content.startswith(MAGIC):
        return facts, 0
    at = len(MAGIC)
    while at + _RECORD.size <= len(content):
        length, checksum = _RECORD.unpack_from(content, at)
        body = content[at + _RECORD.size : at + _RECORD.size + length]
        if len(body) < length or zlib.crc32(body) != checksum:
            break
        try:
            facts.append(pack(training_pb2.Fact.FromString(body), body))
        except DecodeError:
            break
        at += _RECORD.size + length
    return facts, at


def _claim_own(parent: Path, name: str) -> tuple[Path, int]:
    """The folder of this name, or beside it if another process holds that; and the lock."""
    parent.mkdir(parents=True, exist_ok=True)
    for candidate in (name, *(f"{name}-{number}" for number in range(2, 100))):
        folder = parent / candidate
        folder.mkdir(exist_ok=True)
        lock = _try_lock(folder)
        if lock is not None:
            return folder, lock
    raise OSError(f"{parent}: a hundred spools named {name} are all in use")


def _try_lock(folder: Path) -> int | None:
    """Descriptor of the folder's lock, or None while another process holds it or has just deleted it."""
    path = folder / "lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino == path.stat().st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def _segments(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob(f"*{_SUFFIX}") if file.stem.isdecimal())


def _delete_folder(folder: Path) -> None:
    """Deletes an empty spool whose lock we hold; what else lies in it stays."""
    (folder / "lock").unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        logger.warning("the empty spool %s stays: %s", folder, error.strerror)


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
