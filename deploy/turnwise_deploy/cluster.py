"""A cluster from the machine that launched it: what `ray up` and its sisters do, and what they leave undone.

Whatever concerns the product itself is done on the head (`placement.py`), through `ray exec`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from turnwise_deploy.cluster_file import ClusterFile, load

Say = Callable[[str], None]

_SSH_OPTIONS = (
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
    *("-o", "ConnectTimeout=10", "-o", "BatchMode=yes"),
)
"""As Ray itself connects to nodes, whose keys nobody knows beforehand."""
_SSH_S = 240.0


class ClusterError(RuntimeError):
    """A step has failed; the message says which."""


@dataclass(frozen=True)
class Cluster:
    """One cluster file."""

    file: ClusterFile
    say: Say

    @classmethod
    def of(cls, path: Path, say: Say) -> Cluster:
        """That of a file, which is checked before anything is done; what may be meant is said.

        Raises:
            ClusterFileError: Something in the file is wrong.
        """
        file = load(path)
        for warning in file.warnings:
            say(f"{path}: {warning}")
        return cls(file, say)

    def up(self, wait_s: float, fresh: bool = False) -> None:
        """Launches or updates the cluster, and returns when the bot answers.

        Args:
            wait_s: For the bot to answer, once Ray is up.
            fresh: Machines of one's own are set up as if for the first time. Ray remembers, on the machine
                that launches, which have what, and would not notice that a disk was replaced.

        Raises:
            ClusterError: A step has failed; what runs goes on.
        """
        if fresh and self.file.provider == "local":
            from ray.autoscaler._private.local.config import get_state_path

            Path(get_state_path(self.file.cluster_name)).unlink(missing_ok=True)
        self._ray("up", "--yes", "--no-config-cache", str(self.file.path))
        self.on_head("status", "--wait", f"{wait_s:g}")

    def on_head(self, *words: str) -> None:
        """Runs a verb of `turnwise cluster` on the head.

        Raises:
            ClusterError: It has failed, or the head cannot be reached.
        """
        self._ray("exec", str(self.file.path), shlex.join(["turnwise", "cluster", *words]))

    def down(self) -> None:
        """Drains the actors, has the learner save, stops Ray on every node; cloud machines are given back.

        A node that cannot be reached is told of, and the rest goes on.

        Raises:
            ClusterError: Ray itself could not take the cluster down.
        """
        self._try("the actors and the learner", lambda: self.on_head("stop"))
        for ip in self.file.worker_ips:
            self._try(ip, lambda ip=ip: self._stop_node(ip))  # type: ignore[misc]
        if head := self.file.head_ip:
            self._try(head, lambda: self._ssh(head, self._stop_here))
        self._ray("down", "--yes", str(self.file.path))

    def _try(self, what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except ClusterError as error:
            self.say(f"{what} could not be stopped: {error}")

    def _stop_node(self, ip: str) -> None:
        """On machines of one's own, `ray down` leaves Ray running on the workers."""
        self.say(f"stopping {ip}")
        self._ssh(ip, f"{self._stop_here}; ray stop --grace-period 20")

    @property
    def _stop_here(self) -> str:
        # The folder as it stands in the file, unquoted: `~` is the node's.
        return "turnwise cluster stop-here" + (f" --data {self.file.data}" if self.file.data else "")

    def _ssh(self, ip: str, command: str) -> None:
        key = self.file.ssh_private_key
        identity = ("-i", str(key)) if key else ()
        # As Ray runs commands: a login shell that has read ~/.bashrc, where the product's PATH is.
        remote = f"bash --login -c -i {shlex.quote(f'source ~/.bashrc; {command}')}"
        _run(["ssh", *_SSH_OPTIONS, *identity, f"{self.file.ssh_user}@{ip}", remote], _SSH_S)

    def _ray(self, *words: str) -> None:
        _run([str(Path(sys.executable).with_name("ray")), *words], None)


def _run(command: Sequence[str], timeout_s: float | None) -> None:
    """In the terminal of the caller: what it prints is seen as it comes."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=timeout_s, check=False)
    except FileNotFoundError as error:
        raise ClusterError(f"there is no program {name!r}: pip install 'turnwise[learner]'") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{name} has not ended within {timeout_s:.0f} s") from error
    if done.returncode:
        raise ClusterError(f"{name} ended with exit code {done.returncode}")
