"""The process as it is run: arguments, health, signals, exit status, size."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from turnwise.v1 import dialogue_pb2 as pb
from turnwise_actor.config import ActorConfig, SpoolConfig
from turnwise_actor.policy import Domain

from .conftest import ActorFactory, eventually, make_policy
from .frontend import Frontend, seen
from .learner_end import LearnerEnd

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Process:
    """An actor process and a frontend connected to it."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, log: Path) -> None:
        self.process, self.address, self._log = process, address, log
        self.channel = grpc.aio.insecure_channel(address)
        self.bot = Frontend(self.channel)

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), 20)


ProcessFactory = Callable[..., Awaitable[Process]]


@pytest.fixture
async def new_process(config: ActorConfig, tmp_path: Path) -> AsyncIterator[ProcessFactory]:
    started: list[Process] = []

    async def start(learner_address: str = config.learner_address, name: str = "actor") -> Process:
        address_file, log = tmp_path / f"{name}.address", tmp_path / f"{name}.log"
        arguments = {
            "--domain": config.domain_file,
            "--learner": learner_address,
            "--listen": config.listen_address,
            "--keys": config.key_file,
            "--spool": config.spool_folder,
            "--policy": config.policy_path,
            "--address-file": address_file,
        }
        with log.open("w") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "turnwise_actor",
                *(str(part) for pair in arguments.items() for part in pair),
                stderr=stderr,
                env=environment(),
            )
        await eventually(lambda: address_file.exists() or process.returncode is not None, 20)
        assert process.returncode is None, log.read_text()
        started.append(Process(process, address_file.read_text(), log))
        return started[-1]

    yield start
    for each in started:
        await each.channel.close(None)
        if each.process.returncode is None:
            each.process.kill()
            await each.process.wait()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


async def health_of(channel: grpc.aio.Channel, service: str) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_sigterm_flushes_and_exits_with_0(
    new_process: ProcessFactory, learner: LearnerEnd, config: ActorConfig
) -> None:
    actor = await new_process()
    turn = await actor.bot.act((await actor.bot.start("d1")).token, seen("a secret word"))
    assert await actor.terminate() == 0
    assert set(learner.facts) == {"s:d1", f"d:{turn.decision_id}"}
    assert learner.reports[-1].draining
    assert not list(config.spool_folder.iterdir())
    assert "secret" not in actor.log


async def test_facts_left_over_make_it_exit_with_75_naming_the_spool_and_the_next_start_sends_them(
    new_process: ProcessFactory, learner: LearnerEnd, config: ActorConfig
) -> None:
    actor = await new_process("127.0.0.1:1")
    turn = await actor.bot.act((await actor.bot.start("d1")).token)
    assert (await actor.bot.feedback(turn, feedback_id="f1", reward=1.0)).settled == pb.Receipt.SPOOLED
    assert await actor.terminate() == 75
    [left] = config.spool_folder.iterdir()
    assert str(left) in actor.log
    heir = await new_process(name="heir")
    await eventually(lambda: set(learner.facts) == {"s:d1", f"d:{turn.decision_id}", "f:f1"})
    assert await heir.terminate() == 0


async def test_what_a_killed_actor_owed_comes_from_the_token_by_way_of_another(
    new_process: ProcessFactory, new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    killed = await new_process("127.0.0.1:1")
    first = await killed.bot.act((await killed.bot.start("d1")).token)
    second = await killed.bot.act(first.token)
    killed.process.kill()
    await killed.process.wait()
    assert not learner.facts
    _, other = await new_actor()
    third = await other.act(second.token)
    decided = [f"d:{turn.decision_id}" for turn in (first, second, third)]
    await eventually(lambda: list(learner.facts) == ["s:d1", *decided])


async def test_spooled_feedback_outlives_a_kill(
    new_process: ProcessFactory, new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    killed = await new_process("127.0.0.1:1")
    turn = await killed.bot.act((await killed.bot.start("d1")).token)
    await killed.bot.feedback(turn, feedback_id="f1", reward=1.0)
    killed.process.kill()
    await killed.process.wait()
    await new_actor()
    await eventually(lambda: set(learner.facts) == {"s:d1", f"d:{turn.decision_id}", "f:f1"})


async def test_health_follows_the_policy_and_reflection_tells_the_services(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain
) -> None:
    _, bot = await new_actor(policy_path=None)
    for service in ("", "turnwise.v1.Dialogue"):
        assert await health_of(bot.channel, service) == NOT_SERVING
    await learner.publish(make_policy(domain))
    watch: Any = health_pb2_grpc.HealthStub(bot.channel)
    async for told in watch.Watch(health_pb2.HealthCheckRequest(service="turnwise.v1.Dialogue")):
        if told.status == SERVING:
            break
    assert await health_of(bot.channel, "") == SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(bot.channel)
    call = reflection.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    services = {each.name for each in (await call.read()).list_services_response.service}
    assert {"turnwise.v1.Dialogue", "grpc.health.v1.Health"} <= services
    await call.done_writing()


async def test_a_port_in_use_is_refused(new_actor: ActorFactory) -> None:
    actor, _ = await new_actor()
    with pytest.raises(OSError, match="cannot listen on 127"):
        await new_actor(listen_address=actor.address)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "turnwise_actor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment(), check=False)


def test_what_is_wrong_at_the_start_is_told_in_one_line(
    domain_file: Path, key_file: Path, tmp_path: Path
) -> None:
    fine = {
        "--domain": domain_file,
        "--learner": "127.0.0.1:1",
        "--listen": "127.0.0.1:0",
        "--keys": key_file,
        "--spool": tmp_path / "spool",
    }
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a policy")
    for option, value, status, wanted in (
        ("--listen", "nowhere", 2, "listen_address: got 'nowhere'; wanted HOST:PORT"),
        ("--domain", tmp_path / "none.yaml", 78, "none.yaml"),
        ("--keys", tmp_path / "none.json", 78, "none.json: cannot be read"),
        ("--policy", broken, 78, "policy file"),
    ):
        done = run(*(part for pair in {**fine, option: value}.items() for part in pair))
        assert (done.returncode, wanted in done.stderr) == (status, True), done.stderr
        assert "Traceback" not in done.stderr


def test_it_imports_neither_torch_nor_ray_and_is_small() -> None:
    code = (
        "import json, sys, turnwise_actor.__main__;"
        "print(json.dumps([sorted(set(sys.modules) & {'torch', 'ray', 'gymnasium'}),"
        " int(open('/proc/self/statm').read().split()[1]) * 4]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    # Not ru_maxrss: that counts what the test process was before exec.
    heavy, kilobytes = json.loads(done.stdout)
    assert heavy == []
    assert kilobytes < 100_000


async def test_neither_words_nor_tokens_are_logged(
    new_actor: ActorFactory, learner: LearnerEnd, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        actor, bot = await new_actor(spool=SpoolConfig(max_bytes=1), learner_address="127.0.0.1:1")
        token = (await bot.start()).token
        for _ in range(12):
            token = (await bot.act(token, seen("a secret word"))).token
        with pytest.raises(grpc.aio.AioRpcError):
            await bot.end(token, "secret outcome")
        await actor.stop()
    assert "secret" not in caplog.text
    assert token.hex()[:40] not in caplog.text
