"""Clients find the actors through the learner while actors come, go and die, and the learner with them."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import turnwise
from tests.authority import Authority
from tests.e2e.deployment import DOMAIN, status
from turnwise_actor.access.credentials import add_credential
from turnwise_actor.policy import Domain, initial_policy
from turnwise_cli.verbs import cli
from turnwise_deploy.data_folder import DataFolder

pytestmark = pytest.mark.timeout(240)

TALKERS = 2


@dataclass
class Machines:
    """A learner without a trainer, and actors: processes that the test starts and kills."""

    folder: Path
    server: tuple[str, ...] = ()
    """Options for everything that listens."""
    learner_end: tuple[str, ...] = ()
    """Options with which actors connect to the learner."""
    learner: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """By address."""

    def start_learner(self) -> str:
        """At the address that it had before, if any."""
        data, file = self.folder / "data", self.folder / "data" / "learner.address"
        file.unlink(missing_ok=True)
        listen = self.learner or "127.0.0.1:0"
        places = ("--domain", DOMAIN, "--data", data, "--listen", listen, "--no-trainer")
        self.learner = self._start("turnwise_learner", file, *places, *self.server)
        return self.learner

    def start_actor(self, name: str) -> str:
        """Its address."""
        keys, policy = DataFolder(self.folder).ensure_keys(), self.folder / "1.1.safetensors"
        policy.write_bytes(initial_policy(Domain.load(DOMAIN)).to_bytes())
        file = self.folder / f"{name}.address"
        places = ("--domain", DOMAIN, "--learner", self.learner, "--listen", "127.0.0.1:0", "--keys", keys)
        more = ("--spool", self.folder / "spool", "--policy", policy, "--address-file", file)
        return self._start("turnwise_actor", file, *places, *more, *self.server, *self.learner_end)

    def end(self, address: str, how: signal.Signals) -> int:
        """Its exit code."""
        process = self.processes.pop(address)
        process.send_signal(how)
        return process.wait(30)

    def _start(self, module: str, address_file: Path, *options: object) -> str:
        log = (self.folder / f"{module}.log").open("ab")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", module, *map(str, options)]
        with log:
            process = subprocess.Popen(command, stderr=log, env=environment)
        deadline = time.monotonic() + 60
        while not address_file.exists() or not address_file.read_text():
            assert process.poll() is None, (self.folder / f"{module}.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        address = address_file.read_text()
        self.processes[address] = process
        return address


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    machines = Machines(tmp_path)
    yield machines
    for process in machines.processes.values():
        process.kill()
        process.wait()


async def eventually(holds: Callable[[], Any], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


def known(bot: turnwise.Client | turnwise.AsyncClient) -> set[str]:
    """The actors that a client uses now."""
    return {address.target for address in bot._engine._router._addresses}


class Crowd:
    """Both clients talk all the time; a turn that fails ends the test."""

    def __init__(self, bot: turnwise.AsyncClient, blocking: turnwise.Client) -> None:
        self.bots = (bot, blocking)
        self.turns = 0
        self._talking = True
        self._work = [asyncio.create_task(self._talk(bot)) for _ in range(TALKERS)]
        self._work += [asyncio.create_task(self._talk_blocking(blocking)) for _ in range(TALKERS)]

    async def more(self, turns: int = 40) -> None:
        """Until that many turns more were answered."""
        wanted = self.turns + turns
        await eventually(lambda: self.turns >= wanted or any(each.done() for each in self._work))
        for each in self._work:
            if each.done():
                each.result()

    async def use(self, *actors: str) -> None:
        """Until exactly these are used by both clients, and then some turns."""
        await eventually(lambda: all(known(bot) == set(actors) for bot in self.bots))
        await self.more()

    async def stop(self) -> None:
        self._talking = False
        await asyncio.gather(*self._work)

    async def _talk(self, bot: turnwise.AsyncClient) -> None:
        while self._talking:
            async with bot.dialogue(mode="evaluate") as talk:
                for index in range(5):
                    assert (await talk.act(text="hello")).index == index
                    self.turns += 1
                    await asyncio.sleep(0.01)

    async def _talk_blocking(self, bot: turnwise.Client) -> None:
        def one() -> None:
            with bot.dialogue(mode="evaluate") as talk:
                for index in range(5):
                    assert talk.act(text="hello").index == index
                    self.turns += 1
                    time.sleep(0.01)

        while self._talking:
            await asyncio.to_thread(one)


async def while_people_talk(learner: str, happens: Callable[[Crowd], Awaitable[None]]) -> None:
    async with AsyncExitStack() as stack:
        bot = await stack.enter_async_context(turnwise.AsyncClient(f"learner://{learner}"))
        blocking = turnwise.Client(f"learner://{learner}")
        stack.push_async_callback(asyncio.to_thread, blocking.close)
        crowd = Crowd(bot, blocking)
        try:
            await happens(crowd)
        finally:
            await crowd.stop()
    await eventually(lambda: "turnwise-discovery" not in [each.name for each in threading.enumerate()])


def turns_of(learner: str) -> dict[str, int]:
    return {each.report.address: each.report.turns for each in status(learner).actors}


async def test_no_turn_fails_while_actors_come_and_go(machines: Machines) -> None:
    learner = machines.start_learner()
    first, second = machines.start_actor("first"), machines.start_actor("second")

    async def happens(crowd: Crowd) -> None:
        await crowd.use(first, second)
        third = await asyncio.to_thread(machines.start_actor, "third")
        await crowd.use(first, second, third)
        await eventually(lambda: turns_of(learner)[third] > 0)
        assert await asyncio.to_thread(machines.end, first, signal.SIGTERM) == os.EX_OK
        await crowd.use(second, third)
        await asyncio.to_thread(machines.end, second, signal.SIGKILL)
        await crowd.more()
        assert all(known(bot) == {second, third} for bot in crowd.bots)

    await while_people_talk(learner, happens)


async def test_the_list_survives_the_learner(machines: Machines) -> None:
    learner = machines.start_learner()
    first, second = machines.start_actor("first"), machines.start_actor("second")

    async def happens(crowd: Crowd) -> None:
        await crowd.use(first, second)
        await asyncio.to_thread(machines.end, learner, signal.SIGKILL)
        await crowd.use(first, second)
        async with turnwise.AsyncClient(f"learner://{learner}", timeout=0.5) as late:
            with pytest.raises(turnwise.ActorUnavailable, match=f"learner://{learner}: "):
                await late.domain()
            await asyncio.to_thread(machines.start_learner)
            await crowd.use(first, second)
            assert (await late.domain(timeout=30)).actions
        await eventually(lambda: sum(each.connected for each in status(learner).actors) == 2)
        assert await asyncio.to_thread(machines.end, learner, signal.SIGTERM) == 0
        await crowd.use(first, second)
        await asyncio.to_thread(machines.start_learner)
        third = await asyncio.to_thread(machines.start_actor, "third")
        await crowd.use(first, second, third)

    await while_people_talk(learner, happens)


def test_tls_and_credentials_are_those_of_the_client(machines: Machines, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    pair, credentials = authority.issue("server"), tmp_path / "credentials.json"
    for name, role in (("web", "frontend"), ("node", "actor")):
        (tmp_path / name).write_text(add_credential(credentials, name, [role]))
    certificate = ("--tls-cert", str(pair.certificate), "--tls-key", str(pair.key))
    machines.server = (*certificate, "--credentials", str(credentials))
    machines.learner_end = (
        "--learner-ca",
        str(authority.file),
        "--learner-credentials",
        str(tmp_path / "node"),
    )
    address = f"learner://{machines.start_learner()}"
    machines.start_actor("first")
    with turnwise.Client(address, (tmp_path / "web").read_text(), authority.file) as bot:
        assert bot.dialogue(mode="evaluate").act(text="hello").index == 0
    for credential, said in ((None, "got none"), ((tmp_path / "node").read_text(), "has the role actor")):
        refused = pytest.raises(turnwise.AccessDenied, match=said)
        with turnwise.Client(address, credential, authority.file) as bot, refused:
            bot.domain()
    unheard = pytest.raises(turnwise.ActorUnavailable, match=address)
    with turnwise.Client(address, timeout=1) as plain, unheard:
        plain.domain()
    bring = ["--ca", str(authority.file), "--token-file", str(tmp_path / "web")]
    simulated = ["simulate", address, "--dialogues", "2", "--at-once", "1", "--mode", "evaluate"]
    ran = CliRunner().invoke(cli, [*simulated, "--rated", "0", *bring])
    assert ran.exit_code == 0, ran.output
    assert '"dialogues": 2' in ran.output
    wrong = CliRunner().invoke(cli, ["chat", "learner://localhost", *bring])
    assert wrong.exit_code == 1
    assert "'learner://host:port', with a port from 1 to 65535" in wrong.output
