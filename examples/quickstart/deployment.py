"""`turnwise up` and `turnwise status`, run from a script."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

TURNWISE = (sys.executable, "-m", "turnwise_cli")
STOP_TIMEOUT_S = 150.0


class Deployment:
    """A learner and actors in a data folder, from `start()` to `stop()`.

    Attributes:
        actors: HOST:PORT of each actor.
        learner: HOST:PORT of the learner.
        status: What `turnwise status --watch --json` told last; empty before the first.
    """

    def __init__(self, domain: Path, data: Path, actors: int, log: Path) -> None:
        places = ("--domain", str(domain), "--data", str(data), "--actors", str(actors))
        self._command = (*TURNWISE, "up", *places, "--port", "0", "--learner-port", "0")
        self._log = log
        self._up: subprocess.Popen[str] | None = None
        self._watch: subprocess.Popen[str] | None = None
        self.actors: list[str] = []
        self.learner = ""
        self.status: dict[str, Any] = {}

    def start(self) -> None:
        """Returns when the bot answers.

        Raises:
            RuntimeError: It could not start; the message has its last words.
        """
        # In a session of its own: a Ctrl-C in the terminal is for us, and we stop it in good order.
        with self._log.open("a") as log:
            self._up = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self._up.stdout is not None
        line = self._up.stdout.readline()
        ready = re.fullmatch(r"ready actors=(\S+) learner=(\S+)\n", line)
        if ready is None:
            raise RuntimeError(f"`turnwise up` did not start:\n{self.last_words(8)}")
        self.actors, self.learner = ready[1].split(","), ready[2]
        self._watch = subprocess.Popen(
            (*TURNWISE, "status", "--watch", "--json", "--learner", self.learner),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._follow, args=(self._watch,), daemon=True).start()

    def status_now(self) -> dict[str, Any]:
        """What the learner says now."""
        command = (*TURNWISE, "status", "--json", "--learner", self.learner)
        told: dict[str, Any] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
        return told

    def stop(self) -> int:
        """Ends everything in good order; the exit code of `turnwise up`. Harmless when nothing runs."""
        if self._watch is not None:
            self._watch.terminate()
            self._watch.wait()
            self._watch = None
        if self._up is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            self._up.send_signal(signal.SIGTERM)
        code = self._up.wait(STOP_TIMEOUT_S)
        self._up = None
        return code

    def last_words(self, lines: int = 1) -> str:
        """What `turnwise up` said last."""
        said = self._log.read_text().splitlines() if self._log.exists() else []
        return "\n".join(said[-lines:])

    def _follow(self, watch: subprocess.Popen[str]) -> None:
        assert watch.stdout is not None
        for line in watch.stdout:
            self.status = json.loads(line)
