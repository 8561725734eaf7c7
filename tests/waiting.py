"""Waits for what other processes do, and looks whether they are there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 60.0


def eventually(look: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
    """The first true answer of `look`; an error when there is none in time."""
    deadline = time.monotonic() + patience_s
    while not (answer := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still {answer!r} after {patience_s:g} s")
        time.sleep(0.02)
    return answer


def alive(pid: int | None) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, or between that and reading
        return False
