"""Keeps the trainer child running."""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_STABLE_S = 60.0
"""A child that lived this long is started again after the first pause."""


class Supervisor:
    """Starts a command, and starts it again when it ends, until `stop`.

    The child leads a process group of its own, so that Ctrl-C in a terminal reaches the service alone. It is
    asked with SIGTERM to end and given time for its last checkpoint. That it does not outlive the service is
    its own doing (a parent-death signal).

    Args:
        command: Program and arguments.
        log_file: Takes the child's output, appended.
        exit_wait_s: Time between SIGTERM and SIGKILL.
    """

    def __init__(self, command: Sequence[str], log_file: Path, exit_wait_s: float) -> None:
        self._command = tuple(command)
        self._log_file = log_file
        self._exit_wait_s = exit_wait_s
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.restarts = 0
        """How often it was started again."""

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begins; returns at once."""
        self._task = asyncio.create_task(self._run(), name="trainer-supervisor")

    async def stop(self) -> None:
        """Asks the child to end, waits, kills it after `exit_wait_s`. Harmless when nothing runs."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    def kill(self) -> None:
        """Ends the child at once, without its last checkpoint."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            await self._run_once()
            if self._stopping.is_set():
                return
            pause_s = _FIRST_PAUSE_S if time.monotonic() - started >= _STABLE_S else pause_s
            log.warning("the trainer is started again in %.1f s", pause_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
                return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self.restarts += 1

    async def _run_once(self) -> None:
        """Starts the child and returns when it has ended."""
        try:
            with self._log_file.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            log.error("the trainer cannot be started: %s", error)
            return
        self._process = process
        log.info("the trainer runs as process %d, its log is %s", process.pid, self._log_file)
        stopping = asyncio.create_task(self._stopping.wait())
        exited = asyncio.create_task(process.wait())
        await asyncio.wait((stopping, exited), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not exited.done():
            await self._end(process, exited)
        self._process = None
        log.info("the trainer has ended: %s", _describe(await exited))

    async def _end(self, process: asyncio.subprocess.Process, exited: "asyncio.Task[int]") -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(exited), self._exit_wait_s)
        except asyncio.TimeoutError:
            log.error("the trainer has not ended within %.0f s and is killed", self._exit_wait_s)
            self.kill()


def _describe(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
