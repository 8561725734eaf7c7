"""Machines made of namespaces: processes, files, network and sshd of their own, on one switch.

A machine sees the files of the one it is made on, and writes to a disk of its own, in memory. `/shared` is
one for all. Needs root, and the Debian packages iproute2, openssh-server and rsync.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
INIT = Path(__file__).with_name("machine.sh")
NETWORK = "10.77.0"
_PARTS = ("client", "actor", "learner", "deploy")
_BOOT_S = 20.0


def cannot() -> str:
    """Why no machines can be made here; empty when they can."""
    if os.geteuid() != 0:
        return "machines made of namespaces need root"
    missing = [
        name for name in ("ip", "nsenter", "unshare", "rsync", "ssh-keygen", "ssh") if not shutil.which(name)
    ]
    missing += [] if Path("/usr/sbin/sshd").exists() else ["sshd"]
    if missing:
        return f"machines made of namespaces need {', '.join(missing)} (iproute2, openssh-server, rsync)"
    probe = ["unshare", "--pid", "--fork", "--mount", "--net", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "this kernel or container lets nobody make namespaces"
    return ""


@dataclass
class Machine:
    """One machine while it is on."""

    name: str
    ip: str
    pid: int
    """Of its process 1, seen from here."""
    _holder: subprocess.Popen[bytes]

    def command(self, words: str) -> list[str]:
        """As somebody logged in there would have it run."""
        inside = ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-u", "-i", "-r", "-w"]
        clean = ["env", "-i", "HOME=/root", "TERM=xterm", "USER=root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        return [*inside, "--", *clean, "bash", "-c", f"source /root/.bashrc; cd; {words}"]

    def run(self, words: str, timeout_s: float = 120.0, check: bool = True) -> str:
        """Runs a command to its end; what it prints, standard error last."""
        done = subprocess.run(
            self.command(words),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check and done.returncode:
            said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            raise AssertionError(f"{self.name}: {words!r} ended with {done.returncode}\n{said}")
        return done.stdout + done.stderr


@dataclass
class Machines:
    """All machines, and the switch that joins them."""

    folder: Path
    _on: dict[str, Machine] = field(default_factory=dict)
    _ips: dict[str, str] = field(default_factory=dict)
    _switch: str = ""

    def __getitem__(self, name: str) -> Machine:
        return self._on[name]

    def ip(self, name: str) -> str:
        """Of a machine, also while it is off."""
        return self._ips[name]

    def begin(self, names: tuple[str, ...]) -> None:
        """Makes the switch, the keys, and all machines."""
        (self.folder / "shared").mkdir(parents=True, exist_ok=True)
        self._ips = {name: f"{NETWORK}.{number}" for number, name in enumerate(names, 1)}
        hosts = "".join(f"{ip} {name}\n" for name, ip in self._ips.items())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        for key in ("id", "host_key"):
            _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        self._switch = f"turnwise-{os.getpid()}"
        _do("ip", "netns", "add", self._switch)
        self._at_switch("link", "add", "bridge", "type", "bridge")
        self._at_switch("link", "set", "bridge", "up")
        for name in names:
            self.power_on(name)

    def power_on(self, name: str) -> Machine:
        """Boots a machine; its disk is as it was, empty at first."""
        disk = self.folder / f"{name}.disk"
        if not disk.is_mount():
            disk.mkdir(exist_ok=True)
            _do("mount", "-t", "tmpfs", "-o", "size=3g,mode=755", "disk", str(disk))
        ready = self.folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        kinds = ("--pid", "--fork", "--kill-child", "--mount", "--net", "--uts", "--ipc")
        sees = {str(REPOSITORY), str(Path(sys.prefix)), str(Path(sys.base_prefix))} - {"/usr"}
        paths = ":".join(str(REPOSITORY / part) for part in _PARTS)
        environment = {
            "PATH": os.environ["PATH"],
            "MACHINE_SEES": " ".join(sorted(sees)),
            "MACHINE_BIN": str(Path(sys.prefix) / "bin"),
            "MACHINE_ENV": f"PYTHONPATH={paths}",
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            holder = subprocess.Popen(
                ["unshare", *kinds, str(INIT), name, self._ips[name], str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        pid = self._first_process(holder, name)
        link = f"tw-{name}"
        self._at_switch("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._at_switch("link", "set", link, "master", "bridge", "up")
        _until(ready.exists, f"{name} does not boot: {(self.folder / f'{name}.log').read_text()[-2000:]}")
        # Until its process 1 has gone to the machine's own root, a command would run beside the machine.
        _until(lambda: not os.path.samefile(f"/proc/{pid}/root", "/"), f"{name} stays outside its root")
        self._on[name] = Machine(name, self._ips[name], pid, holder)
        return self._on[name]

    def lose_disk(self, name: str) -> None:
        """Of a machine that is off."""
        _do("umount", str(self.folder / f"{name}.disk"))

    def power_off(self, name: str) -> None:
        """At once, as if the plug were pulled: nobody is told, no connection is closed."""
        machine = self._on.pop(name)
        self._at_switch("link", "set", f"tw-{name}", "down")
        os.kill(machine.pid, signal.SIGKILL)  # the kernel ends all its processes with it
        machine._holder.wait()
        self._at_switch("link", "del", f"tw-{name}", check=False)

    @contextlib.contextmanager
    def cut_off(self, name: str) -> Iterator[None]:
        """Inside the block no packet reaches the machine, and none leaves it."""
        self._at_switch("link", "set", f"tw-{name}", "down")
        try:
            yield
        finally:
            self._at_switch("link", "set", f"tw-{name}", "up")

    def end(self) -> None:
        """Powers everything off."""
        for name in list(self._on):
            self.power_off(name)
        for disk in self.folder.glob("*.disk"):
            _do("umount", str(disk), check=False)
        if self._switch:
            _do("ip", "netns", "del", self._switch, check=False)

    def _first_process(self, holder: subprocess.Popen[bytes], name: str) -> int:
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
        _until(lambda: bool(children.read_text().split()), f"{name} gets no process")
        pid = int(children.read_text().split()[0])
        ours = os.readlink("/proc/self/ns/net")
        _until(lambda: os.readlink(f"/proc/{pid}/ns/net") != ours, f"{name} gets no network")
        return pid

    def _at_switch(self, *words: str, check: bool = True) -> None:
        _do("ip", "-n", self._switch, *words, check=check)


def _do(*words: str, check: bool = True) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{shlex.join(words)}: {done.stderr}")


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _BOOT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
