from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from turnwise_actor.config import ActorConfig, SpoolConfig, StreamConfig, UplinkConfig
from turnwise_actor.policy import Domain, Exploration, Policy, PolicyVersion, initial_policy
from turnwise_actor.server import ActorServer
from turnwise_actor.tokens import KeyRing, Tokens

from .frontend import Frontend
from .learner_end import LearnerEnd

DOMAIN = """
name: shop
state:
  text: {encoder: hashing, size: 64}
  slots: {intent: [greet, order, bye], items: {type: number, min: 0, max: 9}, vip: {type: bool}}
  features: 2
  history: 2
actions:
  - {id: greet, say: "Hello!"}
  - {id: ask_size, say: ["Which size?", "What size would you like?"]}
  - {id: handoff}
rewards: {range: [-1, 1]}
dialogue: {idle_timeout: 30m, max_turns: 20}
"""

ActorFactory = Callable[..., Awaitable[tuple[ActorServer, Frontend]]]


@pytest.fixture
def domain_file(tmp_path: Path) -> Path:
    file = tmp_path / "domain.yaml"
    file.write_text(DOMAIN)
    return file


@pytest.fixture
def domain(domain_file: Path) -> Domain:
    return Domain.load(domain_file)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "token-keys.json", "ab12cd34")


@pytest.fixture
def tokens(key_file: Path, domain: Domain) -> Tokens:
    """What seals and opens the tokens of the actors under test."""
    return Tokens(KeyRing(key_file, domain.name), domain.name)


@pytest.fixture
async def learner() -> AsyncIterator[LearnerEnd]:
    end = LearnerEnd()
    await end.start()
    yield end
    end.answering.set()
    await end.stop()


@pytest.fixture
def config(
    domain_file: Path, key_file: Path, tmp_path: Path, learner: LearnerEnd, domain: Domain
) -> ActorConfig:
    policy_file = tmp_path / "1.1.safetensors"
    policy_file.write_bytes(make_policy(domain).to_bytes())
    return ActorConfig(
        domain_file=domain_file,
        learner_address=learner.address,
        listen_address="127.0.0.1:0",
        key_file=key_file,
        spool_folder=tmp_path / "spool",
        policy_path=policy_file,
        drain_s=2.0,
        uplink=UplinkConfig(
            settle_wait_ms=200,
            reconnect_min_s=0.02,
            reconnect_max_s=0.1,
            ack_timeout_s=1.0,
            reach_s=0.1,
            report_interval_s=0.1,
        ),
        spool=SpoolConfig(adopt_interval_s=0.1),
        stream=StreamConfig(quiet_s=0.1, move_s=1.0),
    )


@pytest.fixture
async def new_actor(config: ActorConfig) -> AsyncIterator[ActorFactory]:
    """Starts actors, each with a frontend connected to it; `ActorConfig` fields may be changed."""
    actors: list[ActorServer] = []
    channels: list[grpc.aio.Channel] = []

    async def start(**changes: Any) -> tuple[ActorServer, Frontend]:
        actor = ActorServer(replace(config, **changes))
        await actor.start()
        actors.append(actor)
        channels.append(grpc.aio.insecure_channel(actor.address))
        return actor, Frontend(channels[-1])

    yield start
    for channel in channels:
        await channel.close(None)
    for actor in actors:
        if not actor.stopped:
            await actor.stop()


def write_keys(file: Path, *names: str, active: str = "") -> Path:
    """Adds new keys to a key file; the last is active unless another is named."""
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"keys": {}}
    for name in names:
        content["keys"][name] = base64.b64encode(os.urandom(32)).decode()
    content["active"] = active or names[-1]
    file.write_text(json.dumps(content))
    return file


def make_policy(
    domain: Domain,
    version: str = "1.1",
    favourite: str = "greet",
    epsilon: float = 0.5,
    learned_through: int = 7,
) -> Policy:
    """A policy that prefers one action whatever it sees, and explores in teach and serve."""
    blank = initial_policy(domain)
    parameters = {name: value.copy() for name, value in blank.parameters.items()}
    parameters["head.bias"][domain.action_index[favourite]] = 1.0
    return replace(
        blank,
        version=PolicyVersion.parse(version),
        parameters=parameters,
        exploration=Exploration(teach_epsilon=epsilon, serve_epsilon=epsilon),
        learned_through=learned_through,
    )


async def eventually(condition: Callable[[], Any], timeout_s: float = 8.0) -> Any:
    """The first true value of a condition."""

    async def poll() -> Any:
        while not (value := condition()):
            await asyncio.sleep(0.01)
        return value

    return await asyncio.wait_for(poll(), timeout_s)


def version_in_force(actor: ActorServer) -> str:
    """The policy an actor answers from; empty before the first."""
    policy = actor.policies.current
    return str(policy.version) if policy else ""


@pytest.fixture(autouse=True)
def _the_compiled_turn_path_does_not_fail(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Turns would be answered all the same."""
    yield
    failed = [record for record in caplog.get_records("call") if "turn path failed" in record.getMessage()]
    assert not failed
