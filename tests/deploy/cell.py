"""A cluster under test: `turnwise cluster up` on machines made of namespaces, and people who talk to it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from frontends import ClientLog
from reckoning import Account, account, journal_rows, ledger
from tests.authority import Authority
from tests.deploy.machines import REPOSITORY, Machine, Machines
from tests.deploy.people import read_log

ONPREM, CLOUD = REPOSITORY / "deploy/ray/onprem.yaml", REPOSITORY / "deploy/ray/aws.yaml"
TURNWISE = str(Path(sys.executable).with_name("turnwise"))
DESK, HEAD = "desk", "head"
ACTOR = "actor-50051"
"""The only one of each worker."""
FILE = "/shared/cluster.yaml"
DATA = "/root/bot"
"""Of every node; not the default, so that it has to be found in the cluster file."""
SECRETS = "/shared/secrets"
"""Of the desk; `file_mounts` brings it to `~/turnwise` of every node."""
_OF_PEOPLE = f"export TURNWISE_CA={SECRETS}/ca.pem TURNWISE_TOKEN_FILE={SECRETS}/web.token; "
_UP_S = 400.0


@dataclass
class Cell:
    """Head, workers, and a desk from which the cluster is launched and where the people are."""

    machines: Machines
    workers: tuple[str, ...]
    guarded: bool = False
    """Learner and actors speak TLS, with bearer tokens, as in the files for the clouds."""
    redis: bool = False
    """Ray's own state is in a Redis on the desk."""
    actors: tuple[str, ...] = ()
    """HOST:PORT, in the order of the actors."""
    learner: str = ""
    ray_on_head: str = ""
    """With `redis`: the command that starts Ray on the head."""
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
        self._write_secrets()
        content["file_mounts"] = {"~/turnwise": SECRETS}
        content["head_start_ray_commands"][-1] = self._place(content["head_start_ray_commands"][-1])
        if self.redis:
            self._keep_rays_state(content)
        (self._folder / "cluster.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def _place(self, command: str) -> str:
        """The file's own command, with what this cluster has of its own."""
        command = re.sub(r"--actors \d+", f"--actors {len(self.workers)}", command)
        command = command.replace("~/turnwise-data", DATA.replace("/root", "~"))
        if self.guarded:
            cloud = yaml.safe_load(CLOUD.read_text())["metadata"]["place"]
            guard = re.search(r"--tls-cert.* --actor-arg ~/turnwise/actor.token", cloud)
            assert guard
            command = command.replace("--insecure", guard[0])
        store = ("--checkpoint-store", "/shared/store", "--ship-journal-every", "2")
        return " ".join([command, *(f"--learner-arg={word}" for word in store)])

    def _keep_rays_state(self, content: dict[str, Any]) -> None:
        """What docs/cluster.md tells to add for Redis, and the Redis."""
        ip, password = self.machines.ip(DESK), "only-a-test"
        words = f"redis-server --bind {ip} --requirepass {password} --save '' --daemonize yes"
        self.machines[DESK].run(words)
        patience = "export RAY_gcs_rpc_server_reconnect_timeout_s=600"
        place = f"export RAY_REDIS_ADDRESS={ip}:6379 RAY_external_storage_namespace=turnwise"
        head, worker = content["head_start_ray_commands"], content["worker_start_ray_commands"]
        started = head[1].replace("--head", f"--head --redis-password={password}")
        head[1] = self.ray_on_head = f"{patience}; {place}; {started}"
        worker[0] = f"{patience}; {worker[0]}"

    def _write_secrets(self) -> None:
        """The folder that docs/cluster.md has the operator make."""
        folder = self._folder / "secrets"
        folder.mkdir()
        shutil.copy(REPOSITORY / "examples/quickstart/domain.yaml", folder)
        if not self.guarded:
            return
        authority = Authority(folder)
        # Of the head no address: actors know it by name.
        authority.issue("server", hosts=("turnwise", *map(self.machines.ip, self.workers)))
        file = folder / "credentials.json"
        for name, role in (("actor", "actor"), ("web", "frontend")):
            add = ("credential", "add", name, "--role", role, "--file", str(file))
            token = subprocess.run([TURNWISE, *add], capture_output=True, text=True, check=True).stdout
            (folder / f"{name}.token").write_text(token)

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
        said = self.machines[HEAD].run(f"turnwise status --data {DATA} --json 2>/dev/null", 60)
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
        script = f"{REPOSITORY}/tests/deploy/people.py {','.join(self.actors)} {seed} /shared/people"
        words = (_OF_PEOPLE if self.guarded else "") + f"exec python {script}"
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
