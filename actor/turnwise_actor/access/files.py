"""Files that are looked at again while a process runs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TypeAlias

Stamp: TypeAlias = "tuple[int, int, int] | None"


def stamp(file: Path) -> Stamp:
    """Changes whenever the file does; None while it cannot be seen."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


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
