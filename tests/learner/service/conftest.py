"""A service in this process, and a trainer and actors that speak the wire to it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from turnwise.v1 import dialogue_pb2, training_pb2, training_pb2_grpc
from turnwise_actor.access.client_access import LOCAL_TOKEN, ClientAccess
from turnwise_actor.policy import Domain, Policy, PolicyVersion, initial_policy
from turnwise_learner.service.config import ServiceConfig
from turnwise_learner.service.server import Service, running

DOMAIN = """
name: shop
state: {slots: {intent: [greet, order, bye]}}
actions: [{id: greet, say: Hello}, {id: ask_size, say: "Which size?"}]
"""


@pytest.fixture
def domain_file(tmp_path: Path) -> Path:
    path = tmp_path / "domain.yaml"
    path.write_text(DOMAIN)
    return path


@pytest.fixture
def config(tmp_path: Path, domain_file: Path) -> ServiceConfig:
    return ServiceConfig(
        domain=domain_file, data=tmp_path / "data", listen="127.0.0.1:0", start_trainer=False
    )


@pytest.fixture
async def service(config: ServiceConfig) -> AsyncIterator[Service]:
    async with running(config) as service:
        yield service


@pytest.fixture
async def channel(service: Service) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(service.address) as channel:
        yield channel


@pytest.fixture
def operator(channel: grpc.aio.Channel) -> Any:
    return training_pb2_grpc.OperatorStub(channel)


@pytest.fixture
def training(channel: grpc.aio.Channel) -> Any:
    return training_pb2_grpc.TrainingStub(channel)


@pytest.fixture
def make_facts() -> Callable[..., list[training_pb2.Fact]]:
    """Facts of one dialogue: started, then decisions."""

    def make(dialogue: str, decisions: int, text: str = "hello") -> list[training_pb2.Fact]:
        started = training_pb2.Started(user="ann", mode=dialogue_pb2.TEACH)
        facts = [training_pb2.Fact(key=f"s:{dialogue}", dialogue_id=dialogue, time_ms=1, started=started)]
        for index in range(decisions):
            decided = training_pb2.Decided(decision_id=f"{dialogue}.{index}", index=index, action="greet")
            decided.observation.text = text
            facts.append(
                training_pb2.Fact(
                    key=f"d:{dialogue}.{index}", dialogue_id=dialogue, time_ms=index, decided=decided
                )
            )
        return facts

    return make


@pytest.fixture
def send(training: Any) -> Callable[..., Any]:
    """Sends batches on one stream and returns their acknowledgements."""

    async def send(*batches: list[training_pb2.Fact]) -> list[training_pb2.Ack]:
        call = training.AppendFacts()
        for sequence, facts in enumerate(batches, start=1):
            await call.write(training_pb2.FactBatch(sequence=sequence, facts=facts))
        await call.done_writing()
        return [ack async for ack in call]

    return send


@pytest.fixture
def policy_of(domain_file: Path) -> Callable[..., Policy]:
    """A policy of the domain, under a version."""
    policy = initial_policy(Domain.load(domain_file))

    def make(generation: int, number: int, learned_through: int = 0) -> Policy:
        return replace(policy, version=PolicyVersion(generation, number), learned_through=learned_through)

    return make


@dataclass
class FakeTrainer:
    """One stream of a trainer; collects what the service sends, and checks that a welcome comes first."""

    call: Any
    data: Path
    welcome: training_pb2.Welcome = field(default_factory=training_pb2.Welcome)
    commands: "asyncio.Queue[training_pb2.TrainerCommand]" = field(default_factory=asyncio.Queue)
    told: list[int] = field(default_factory=list)
    """Positions to which the journal was said to have grown."""
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    code: grpc.StatusCode | None = None

    async def receive(self) -> None:
        try:
            first = await self.call.read()
            assert first.HasField("welcome")
            self.welcome = first.welcome
            self.grown.set()
            while isinstance(command := await self.call.read(), training_pb2.TrainerCommand):
                if command.WhichOneof("command") == "journal_cursor":
                    assert command.journal_cursor > self.cursor
                    self.told.append(command.journal_cursor)
                    self.grown.set()
                else:
                    assert command.id > 0
                    self.commands.put_nowait(command)
        except grpc.aio.AioRpcError as error:
            self.code = error.code()

    @property
    def cursor(self) -> int:
        """The last of them."""
        return self.told[-1] if self.told else 0

    async def until_cursor(self, cursor: int) -> None:
        while self.cursor < cursor:
            self.grown.clear()
            await asyncio.wait_for(self.grown.wait(), 5)

    async def say(self, **message: Any) -> None:
        await self.call.write(training_pb2.TrainerMessage(**message))

    async def publish(self, policy: Policy, **more: Any) -> None:
        name = f"{policy.version}.safetensors"
        (self.data / "policies" / name).write_bytes(policy.to_bytes())
        published = training_pb2.PolicyPublished(
            version=wire(policy.version),
            learned_through=policy.learned_through,
            file=name,
            updates=policy.updates,
            **more,
        )
        await self.say(published=published)

    def checkpoint(self, version: PolicyVersion) -> training_pb2.CheckpointInfo:
        """Writes a checkpoint folder that holds a version."""
        folder = self.data / "checkpoints" / f"step-{version}"
        folder.mkdir()
        (folder / "turnwise.json").write_text(json.dumps({"version": str(version)}))
        return training_pb2.CheckpointInfo(path=str(folder), updates=7)

    async def answer(self, **answer: Any) -> training_pb2.TrainerCommand:
        """Answers the next command."""
        command = await asyncio.wait_for(self.commands.get(), 5)
        await self.say(done=training_pb2.CommandDone(id=command.id, **answer))
        return command


def wire(version: PolicyVersion) -> dialogue_pb2.PolicyVersion:
    return dialogue_pb2.PolicyVersion(generation=version.generation, number=version.number)


@pytest.fixture
def attach(config: ServiceConfig) -> Callable[..., Any]:
    """Attaches a fake trainer to a service."""

    @asynccontextmanager
    async def attach(service: Service, cause: str = "start", **hello: Any) -> AsyncIterator[FakeTrainer]:
        token = ClientAccess(token_file=config.data / LOCAL_TOKEN).metadata()
        async with grpc.aio.insecure_channel(service.local_address) as channel:
            stub: Any = training_pb2_grpc.TrainerStub(channel)
            call: Any = stub.Attach(metadata=token)
            trainer = FakeTrainer(call, config.data)
            hello = {"journal_id": service.journal.journal_id, "pid": 4711, "cause": cause, **hello}
            await trainer.say(hello=training_pb2.TrainerHello(**hello))
            receiving = asyncio.create_task(trainer.receive())
            welcomed = asyncio.create_task(trainer.grown.wait())
            await asyncio.wait((receiving, welcomed), timeout=5, return_when=asyncio.FIRST_COMPLETED)
            try:
                yield trainer
            finally:
                call.cancel()
                welcomed.cancel()
                await asyncio.wait((receiving,), timeout=5)

    return attach


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Waits until something holds."""

    async def eventually(holds: Callable[[], Any], timeout_s: float = 5.0) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            result = holds()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            assert asyncio.get_running_loop().time() < deadline, "it never came to hold"
            await asyncio.sleep(0.01)

    return eventually
