"""A cluster under test: `turnwise cluster up` on machines made of namespaces, and people who talk to it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from frontends import ClientLog
from reckoning import Account, account, journal_rows, ledger
from tests.deploy.machines import REPOSITORY, Machine, Machines
from tests.deploy.people import read_log

ONPREM = REPOSITORY / "deploy/ray/onprem.yaml"
DESK, HEAD = "desk", "head"
ACTOR = "actor-50051"
"""The only one of each worker."""
FILE = "/shared/cluster.yaml"
DATA = "/root/turnwise-data"
_UP_S = 400.0


@dataclass
class Cell:
    """Head, workers, and a desk from which the cluster is launched and where the people are."""

    machines: Machines
    workers: tuple[str, ...]
    actors: tuple[str, ...] = ()
    """HOST:PORT, in the order of the actors."""
    learner: str = ""
    struck: list[tuple[float, str]] = field(default_factory=list)
    """When which fault struck, in monotonic seconds."""
    _people: subprocess.Popen[bytes] | None = None
    _folder: Path = field(default_factory=Path)

    def begin(self) -> None:
        """Boots the machines and writes the cluster file: the shipped one with what a user has to change."""
        self.machines.begin((HEAD, *self.workers, DESK))
        self._folder = self.machines.folder / "shared"
        content = yaml.safe_load(ONPREM.read_text())
        workers = [self.machines.ip(name) for name in self.workers]
        content["provider"] |= {"head_ip": self.machines.ip(HEAD), "worker_ips": workers}
        content["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id"}
        content |= {"min_workers": len(workers), "max_workers": len(workers)}
        content["setup_commands"] = []  # the machines see this tree and its environment
        content["file_mounts"] = {"~/turnwise": str(REPOSITORY / "examples/quickstart")}
        place = content["head_start_ray_commands"][-1]
        place = re.sub(r"--actors \d+", f"--actors {len(workers)}", place)
        store = ("--checkpoint-store", "/shared/store", "--ship-journal-every", "2")
        arguments = " ".join(f"--learner-arg={word}" for word in store)
        content["head_start_ray_commands"][-1] = f"{place} {arguments}"
        (self._folder / "cluster.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def up(self, *options: str) -> None:
        """Launches it; returns when the bot answers."""
        said = self.machines[DESK].run(f"turnwise cluster up {FILE} --wait 300 {' '.join(options)}", _UP_S)
        ready = re.search(r"^ready actors=(\S+) learner=(\S+)", said, re.MULTILINE)
        assert ready, said[-3000:]
        self.actors, self.learner = tuple(ready[1].split(",")), ready[2]

    def down(self) -> None:
        """Ends it in good order."""
        self.machines[DESK].run(f"turnwise cluster down {FILE}", _UP_S)

    def status(self) -> dict[str, Any]:
        """What `turnwise status` says."""
        said = self.machines[DESK].run(f"turnwise status --learner {self.learner} --json 2>/dev/null", 60)
        content = json.loads(said)
        assert isinstance(content, dict)
        return content

    def machine_of(self, actor: str) -> Machine:
        """The machine that an address belongs to."""
        ip = actor.partition(":")[0]
        return next(self.machines[name] for name in (HEAD, *self.workers) if self.machines.ip(name) == ip)

    def state(self, machine: Machine, part: str) -> dict[str, Any]:
        """What a part's keeper told last."""
        content = json.loads(machine.run(f"cat {DATA}/cluster/{part}/state.json"))
        assert isinstance(content, dict)
        return content

    def strike(self, what: str) -> None:
        """Notes a fault that is about to strike."""
        self.struck.append((time.monotonic(), what))

    def until_placed(self, timeout_s: float) -> None:
        """Waits until Ray has every part in its place, and the bot answers."""
        self.machines[HEAD].run(f"turnwise cluster status --wait {timeout_s:g}", timeout_s + 60)

    def kill(self, machine: Machine, part: str) -> int:
        """SIGKILL for a part's process; the pid it had."""
        pid = int(self.state(machine, part)["pid"])
        machine.run(f"kill -9 {pid}")
        return pid

    # People.

    def talk(self, seed: int) -> None:
        """People begin to talk."""
        for name in ("people", "people.stop", "people.turns"):
            (self._folder / name).unlink(missing_ok=True)
        words = (
            f"exec python {REPOSITORY}/tests/deploy/people.py {','.join(self.actors)} {seed} /shared/people"
        )
        with (self._folder / "people.log").open("ab") as log:
            self._people = subprocess.Popen(
                self.machines[DESK].command(words), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.until(lambda: self.turns() > 20, "nobody is answered", 60)

    def turns(self) -> int:
        """How many they have been answered so far."""
        path = self._folder / "people.turns"
        return int(path.read_text() or 0) if path.exists() else 0

    def hush(self) -> ClientLog:
        """The people end their dialogues; what they know."""
        (self._folder / "people.stop").touch()
        assert self._people is not None
        self._people.wait(180)
        self._people = None
        return read_log(self._folder / "people")

    # Afterwards.

    def reckon(self, log: ClientLog, name: str) -> tuple[Account, int, str]:
        """The people's log against the journal; exit code and words of `turnwise ledger`. After `down`."""
        self.machines[HEAD].run(f"rm -rf /shared/{name}; cp -r {DATA} /shared/{name}")
        data = self._folder / name
        return account(log, journal_rows(data)), *ledger(data)

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 120.0) -> None:
        """Waits for a condition."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.2)

    def end(self) -> None:
        """Powers everything off."""
        if self._people is not None:
            self._people.kill()
            self._people.wait()
        self.machines.end()
