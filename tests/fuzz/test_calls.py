"""Every call of the three services with anything in it: documented statuses alone, and it goes on serving."""

import asyncio
import base64
import json
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

import turnwise
from tests.fuzz.wild import FUZZ, messages
from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.config import ActorConfig, UplinkConfig
from turnwise_actor.policy import Domain, initial_policy
from turnwise_actor.server import ActorServer
from turnwise_learner.service.config import ServiceConfig
from turnwise_learner.service.server import running

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart/domain.yaml"
TIMEOUT_S = 10.0
_SERVICES = (
    (dialogue_pb2.DESCRIPTOR.services_by_name["Dialogue"], "actor"),
    (training_pb2.DESCRIPTOR.services_by_name["Training"], "learner"),
    (training_pb2.DESCRIPTOR.services_by_name["Operator"], "learner"),
)
CALLS = [(method, where) for service, where in _SERVICES for method in service.methods]
_ANSWERS_FOR_EVER = {"WatchStatus", "WatchPolicy"}

DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
}


class Servers:
    """A learner's service and an actor, in a loop of their own."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._stack = AsyncExitStack()
        self._folder = folder
        self.actor = ""
        self.channels: dict[str, grpc.Channel] = {}

    def start(self) -> None:
        self._thread.start()
        self.actor, learner = self._do(self._start())
        self.channels = {
            "actor": grpc.insecure_channel(self.actor),
            "learner": grpc.insecure_channel(learner),
        }

    def stop(self) -> None:
        for channel in self.channels.values():
            channel.close()
        self._do(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> tuple[str, str]:
        data = self._folder / "data"
        config = ServiceConfig(domain=QUICKSTART, data=data, listen="127.0.0.1:0", start_trainer=False)
        service = await self._stack.enter_async_context(running(config))
        keys = self._folder / "token-keys.json"
        key = base64.b64encode(bytes(range(32))).decode()
        keys.write_text(json.dumps({"active": "ab12cd34", "keys": {"ab12cd34": key}}))
        policy = self._folder / "1.1.safetensors"
        policy.write_bytes(initial_policy(Domain.load(QUICKSTART)).to_bytes())
        actor = ActorServer(
            ActorConfig(
                domain_file=QUICKSTART,
                learner_address=service.address,
                listen_address="127.0.0.1:0",
                key_file=keys,
                spool_folder=self._folder / "spool",
                policy_path=policy,
                uplink=UplinkConfig(settle_wait_ms=2000),
            )
        )
        await actor.start()
        self._stack.push_async_callback(actor.stop)
        return actor.address, service.address

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(60)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("fuzz"))
    servers.start()
    yield servers
    servers.stop()


def call(channel: grpc.Channel, method: Any, requests: list[bytes]) -> grpc.StatusCode:
    """Calls with these bytes and reads what comes; the status."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    streams = (method.client_streaming, method.server_streaming)
    kinds = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    send = kinds[streams](path, lambda content: content, lambda content: content)
    given = iter(requests) if method.client_streaming else requests[0]
    try:
        if not method.server_streaming:
            send(given, timeout=TIMEOUT_S)
            return grpc.StatusCode.OK
        answers = send(given, timeout=0.05 if method.name in _ANSWERS_FOR_EVER else TIMEOUT_S)
        for _ in answers:
            pass
    except grpc.RpcError as error:
        status: grpc.StatusCode = error.code()
        forever = method.name in _ANSWERS_FOR_EVER and status == grpc.StatusCode.DEADLINE_EXCEEDED
        return grpc.StatusCode.OK if forever else status
    return grpc.StatusCode.OK


def _named(case: tuple[Any, str]) -> str:
    return str(case[0].name)


@pytest.mark.timeout(100_000)
@pytest.mark.parametrize("case", CALLS, ids=_named)
@FUZZ
@given(data=st.data())
def test_any_message_gets_a_documented_status(
    servers: Servers, case: tuple[Any, str], data: st.DataObject
) -> None:
    method, where = case
    kind = _class_of(method.input_type)
    count = data.draw(st.integers(1, 3)) if method.client_streaming else 1
    drawn = [data.draw(messages(kind)).SerializeToString() for _ in range(count)]
    assert call(servers.channels[where], method, drawn) in DOCUMENTED


@pytest.mark.timeout(100_000)
@pytest.mark.parametrize("case", CALLS, ids=_named)
@FUZZ
@given(content=st.binary(max_size=120))
def test_bytes_that_are_no_message_are_refused_by_grpc(
    servers: Servers, case: tuple[Any, str], content: bytes
) -> None:
    method, where = case
    status = call(servers.channels[where], method, [content])
    try:
        _class_of(method.input_type).FromString(content)
    except DecodeError:
        # What gRPC makes of them, before our code is asked; it may take them for a stream's end.
        ends = {grpc.StatusCode.OK} if method.client_streaming else set()
        assert status in {grpc.StatusCode.UNKNOWN} | ends
    else:
        assert status in DOCUMENTED


def test_after_all_that_a_turn_is_answered_and_journaled(servers: Servers) -> None:
    with turnwise.Client(servers.actor) as bot, bot.dialogue() as talk:
        turn = talk.act(text="hello")
        assert turn.reward(1).settled == "LEARNER"


def _class_of(descriptor: Any) -> type[Message]:
    module = dialogue_pb2 if descriptor.file.name == dialogue_pb2.DESCRIPTOR.name else training_pb2
    kind: type[Message] = getattr(module, descriptor.name)
    return kind
