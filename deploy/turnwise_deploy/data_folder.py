"""The data folder of a local deployment: its lock, its token keys, its places."""

import base64
import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from turnwise_actor.access.client_access import LOCAL_TOKEN
from turnwise_actor.access.credentials import CREDENTIALS
from turnwise_actor.access.files import write_secret


class DataFolderInUseError(RuntimeError):
    """Another `turnwise up` works in this data folder."""


class DataFolder:
    """A data folder, held by one deployment from `lock()` to `unlock()`.

    The children inherit the lock's descriptor, so a folder whose deployment was killed stays locked
    until the last of its children has saved what it had to save.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.lock_fd: int | None = None

    @property
    def logs(self) -> Path:
        """Where each process writes a log of its own."""
        return self.path / "logs"

    @property
    def keys(self) -> Path:
        """The file of the keys that seal continuation tokens."""
        return self.path / "keys" / "token-keys.json"

    @property
    def credentials(self) -> Path:
        """The file of those who may call; missing: nobody is asked."""
        return self.path / CREDENTIALS

    @property
    def local_token(self) -> Path:
        """The file of the token that opens the learner's local door."""
        return self.path / LOCAL_TOKEN

    @property
    def spool(self) -> Path:
        """Where the actors keep facts while the learner is away, each in a folder of its own."""
        return self.path / "spool"

    def lock(self, wait_s: float, say: Callable[[str], None]) -> None:
        """Makes the folder and takes its lock.

        Waits up to `wait_s` for the children of a deployment that is gone itself.

        Raises:
            DataFolderInUseError: Another deployment runs here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._take(descriptor, time.monotonic() + wait_s, say)
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self.lock_fd = descriptor

    def _take(self, descriptor: int, deadline: float, say: Callable[[str], None]) -> None:
        waiting = False
        while not _flock(descriptor):
            owner = _owner(descriptor)
            if owner is not None and _alive(owner):
                raise DataFolderInUseError(
                    f"{self.path} is in use by another `turnwise up` (pid {owner}); "
                    "stop that one, or choose another folder with --data"
                )
            if time.monotonic() > deadline:
                raise DataFolderInUseError(
                    f"{self.path} is in use by processes that an earlier `turnwise up` left behind; "
                    f"see {self.logs}, or choose another folder with --data"
                )
            if not waiting:
                say(f"waiting for the processes of an earlier `turnwise up` in {self.path} to end")
                waiting = True
            time.sleep(0.1)

    def unlock(self) -> None:
        """Gives the folder up; harmless when it is not held."""
        if self.lock_fd is not None:
            os.close(self.lock_fd)
            self.lock_fd = None

    def ensure_keys(self) -> Path:
        """Makes a key for continuation tokens unless there are keys already; readable by the owner alone."""
        if not self.keys.exists():
            key_id = secrets.token_hex(4)
            keys = {"active": key_id, "keys": {key_id: base64.b64encode(secrets.token_bytes(32)).decode()}}
            write_secret(self.keys, json.dumps(keys))
        return self.keys


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _owner(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return int(text) if text.isdigit() else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
