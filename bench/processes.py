"""What processes hold: memory of their own, open files, threads. Read from /proc."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Holding:
    """Of one process, at one time."""

    at_s: float
    own_bytes: int
    """Anonymous memory: no mapped file, no page cache."""
    rss_bytes: int
    """All that is resident, a mapped journal too."""
    files: int
    threads: int


def holding(pid: int, at_s: float) -> Holding | None:
    """None: it is gone."""
    folder = _PROC / str(pid)
    try:
        memory = _fields(folder / "smaps_rollup")
        status = _fields(folder / "status")
        files = sum(1 for _ in (folder / "fd").iterdir())
    except (OSError, KeyError):
        return None
    own, rss = memory.get("Anonymous", status.get("RssAnon", 0)), status.get("VmRSS", 0)
    return Holding(at_s, 1024 * own, 1024 * rss, files, status["Threads"])


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Pid and name of everything that a process has started, and what that has started."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                before, _, after = (folder / "stat").read_text().rpartition(") ")
                name = before.partition(" (")[2]
                parents.setdefault(int(after.split()[1]), []).append((int(folder.name), name))
    waiting = [pid]
    while waiting:
        for child, name in parents.get(waiting.pop(), ()):
            yield child, name
            waiting.append(child)


def _fields(file: Path) -> dict[str, int]:
    fields = {}
    for line in file.read_text().splitlines():
        name, colon, value = line.partition(":")
        if colon and (words := value.split()) and words[0].isdigit():
            fields[name] = int(words[0])
    return fields
