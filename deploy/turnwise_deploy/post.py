"""A post: a folder on a node through which one process of a cluster is ordered, kept and looked at.

Whoever places the process writes an order and renews its lease; the post's keeper (`keeper.py`) follows the
order and tells how it goes. Nothing else connects the two, so either may be killed and started again, and a
process goes on working while Ray is away.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from turnwise_actor.access.files import write_secret

DATA = Path("~/turnwise-data")
"""The data folder of a cluster's nodes, where no other is named."""
_ORDER, _STATE, _LEASE, _LOCK = "order.json", "state.json", "lease", "keeper.lock"

T = TypeVar("T", bound="Order | State")


class PostError(RuntimeError):
    """A file of a post cannot be read; the message names it."""


@dataclass(frozen=True)
class Order:
    """What the keeper is to do."""

    arguments: tuple[str, ...]
    """What follows `python`. Changed: the process is asked to end, and started with the new ones."""
    log: str
    """The file that takes the process's output."""
    stop: bool = False
    """The process is asked to end, and the keeper ends with it."""
    outlive_s: float = 600.0
    """How long the process goes on when nobody renews the lease."""
    drain_s: float = 90.0
    """How long the process gets to end when it is asked to."""


@dataclass(frozen=True)
class State:
    """How it goes, by the keeper."""

    keeper_pid: int
    pid: int | None = None
    """Of the process that runs, if one does."""
    starts: int = 0
    """How often this keeper has started it."""
    exit_code: int | None = None
    """Of the process that ended last; negative: minus the signal."""


class Post:
    """One post. Any number of processes may use it; one at a time keeps it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """As people should read it."""
        return self.folder.name

    def give(self, order: Order) -> None:
        """Writes the order and renews the lease."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.renew()
        write_secret(self.folder / _ORDER, json.dumps(asdict(order)))

    def order(self) -> Order | None:
        """The order that holds; None: none was ever given.

        Raises:
            PostError: The file is malformed.
        """
        order = _read(self.folder / _ORDER, Order)
        return None if order is None else replace(order, arguments=tuple(order.arguments))

    def renew(self) -> None:
        """Says that whoever gave the order is still there."""
        (self.folder / _LEASE).touch()

    def lease_age_s(self) -> float:
        """Seconds since the lease was renewed; infinite: there is none any more."""
        try:
            return max(0.0, time.time() - (self.folder / _LEASE).stat().st_mtime)
        except FileNotFoundError:
            return math.inf

    def tell(self, state: State) -> None:
        """For the keeper: how it goes."""
        write_secret(self.folder / _STATE, json.dumps(asdict(state)))

    def state(self) -> State | None:
        """What the keeper told last, also one that is gone; None: nothing yet."""
        return _read(self.folder / _STATE, State)

    @contextlib.contextmanager
    def kept(self) -> Iterator[bool]:
        """For the keeper: the block holds the post. False: another keeper does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def is_kept(self) -> bool:
        """Whether a keeper is there."""
        if not (self.folder / _LOCK).exists():
            return False
        with self.kept() as free:
            return not free

    def ensure_keeper(self) -> None:
        """Starts a keeper unless there is one; it belongs to nobody and outlives the caller."""
        if not self.is_kept():
            environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
            # The learner's own Ray must not take the cluster's place as this machine's latest.
            environment["RAY_TMPDIR"] = f"/tmp/turnwise-{os.getuid()}"
            command = [sys.executable, "-m", "turnwise_deploy.keeper", "--detach", str(self.folder)]
            subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=60)

    def stop(self, timeout_s: float) -> bool:
        """Has the process end; False: it has not within the time."""
        if (order := self.order()) is not None and not order.stop:
            self.give(replace(order, stop=True))
        deadline = time.monotonic() + timeout_s
        while self.is_kept():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def posts(data: Path) -> list[Post]:
    """All posts of a data folder."""
    return [Post(order.parent) for order in sorted(data.glob(f"cluster/*/{_ORDER}"))]


def post(data: Path, name: str) -> Post:
    """One of a data folder."""
    return Post(data / "cluster" / name)


def _read(path: Path, kind: type[T]) -> T | None:
    known = {field.name for field in fields(kind)}
    try:
        content = json.loads(path.read_text())
        return kind(**{name: value for name, value in content.items() if name in known})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        raise PostError(f"{path}: {error}; remove the file, and place the process again") from error
