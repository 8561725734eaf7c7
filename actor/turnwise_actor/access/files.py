"""Files that are followed while a process runs, what a disk has for good, and secrets on it."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Followed(Generic[T]):
    """What some files say, read anew when one of them has changed.

    Files that cannot be read, or that do not fit together in the midst of a renewal, leave it as it was,
    and that is complained about once.

    Args:
        what: What they hold, for the log.
        files: The files to look at.
        read: Reads them all; raises ValueError or OSError naming what is wrong.
        every_s: Looks no more often than this.
        clock: Seconds.

    Raises on construction what `read` raises.
    """

    def __init__(
        self,
        what: str,
        files: Iterable[Path],
        read: Callable[[], T],
        every_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._files, self._read = what, tuple(files), read
        self._every_s, self._clock = every_s, clock
        self._stamps = self._now()
        self._looked_at = clock()
        self.value = read()

    def latest(self) -> T:
        """The value, after a look if one is due."""
        if self._clock() - self._looked_at >= self._every_s:
            self.look()
        return self.value

    def look(self) -> bool:
        """Looks at the files at once; whether there is a new value."""
        self._looked_at = self._clock()
        stamps = self._now()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            self.value = self._read()
        except (ValueError, OSError) as error:
            logger.error("keeping the %s as before: %s", self._what, error)
            return False
        logger.info("read the %s anew", self._what)
        return True

    def _now(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(file) for file in self._files]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """Changes whenever the file does; None while it cannot be seen."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def sync(path: Path) -> None:
    """Returns when the disk has a file's content, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_secret(file: Path, content: str) -> None:
    """Replaces a file that only its owner may read; nobody sees it half-written, a crash leaves the old one.

    Folders that are missing are made, for the owner alone.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        aside.replace(file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
