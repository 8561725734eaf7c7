"""One child process of a deployment, started again when it dies."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from turnwise_deploy import leash

BACKOFF_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits before the first, second, ... start after a death; the last repeats."""
STEADY_S = 20.0
"""A process that lived this long has its earlier deaths forgotten: what cannot start dies sooner."""
MAX_LOG_BYTES = 16 * 1024 * 1024
"""A log longer than this at a start is moved to NAME.log.1."""


@dataclass
class Child:
    """A command kept running. Not thread-safe: one thread starts, watches and stops it."""

    name: str
    """As people should read it: `learner`, `actor 127.0.0.1:50051`."""
    arguments: tuple[str, ...]
    """What follows `python`."""
    log: Path
    inherit: tuple[int, ...] = ()
    """Descriptors that the process keeps open."""
    deaths: int = 0
    """Deaths in a row, each sooner than `STEADY_S` after its start."""
    exit_code: int | None = None
    """Of the last process that ended; negative: minus the signal."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _started: float = 0.0
    _start_at: float = 0.0
    _kill_at: float | None = None
    """Not None: it was asked to end so as to be started again."""

    @property
    def pid(self) -> int | None:
        """Of the process that runs, if one does."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Starts a process in a session of its own: a Ctrl-C in the terminal does not reach it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*leashed, sys.executable, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=self.inherit,
            )
        self._started = time.monotonic()

    def renew(self, timeout_s: float) -> None:
        """Has the process end, by force after a time, and a new one be due at once: it counts as no death."""
        if self._process is not None:
            self._kill_at = time.monotonic() + timeout_s
            self._process.terminate()

    @property
    def renewing(self) -> bool:
        """True from `renew` until the process has ended."""
        return self._kill_at is not None

    def poll(self) -> int | None:
        """The exit code, told once after each death; None otherwise."""
        now = time.monotonic()
        if self._process is None or (code := self._process.poll()) is None:
            if self._kill_at is not None and now > self._kill_at:
                self.kill()
            return None
        self._process = None
        self.exit_code = code
        if self._kill_at is not None:
            self._kill_at, self._start_at, self.deaths = None, now, 0
            return code
        self.deaths = 1 if now - self._started > STEADY_S else self.deaths + 1
        self._start_at = now + self.backoff_s
        return code

    @property
    def backoff_s(self) -> float:
        """Wait before the next start, seconds."""
        return BACKOFF_S[min(self.deaths, len(BACKOFF_S)) - 1]

    @property
    def due(self) -> bool:
        """True when no process runs and the wait after its death is over."""
        return self._process is None and time.monotonic() >= self._start_at

    def terminate(self) -> None:
        """Asks the process to end; the processes it started are its own affair."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends the process and all of its process group at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()

    def log_tail(self, lines: int = 12) -> str:
        """The end of its log, for error messages."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 8192))
            text = log.read().decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-lines:])
