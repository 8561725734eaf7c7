"""Every call of the five services with anything in it: documented statuses alone, and it goes on serving."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.message import DecodeError, Message

import turnwise
from tests.fuzz.servers import Servers
from tests.fuzz.wild import Wild, inputs
from turnwise.v1 import dialogue_pb2, status_pb2, training_pb2

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(100_000)]

TIMEOUT_S = 30.0
"""Whoever has not answered by then hangs."""
TOGETHER = 64
"""Inputs in flight at once."""
QUIET_S = 0.05
"""How long a call that answers for ever is listened to."""
OK, INVALID = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT
DOCUMENTED = {
    OK,
    INVALID,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
}
_DIALOGUE = dialogue_pb2.DESCRIPTOR.services_by_name["Dialogue"]
_LEARNER = [training_pb2.DESCRIPTOR.services_by_name[name] for name in ("Training", "Operator", "Registry")]
METHODS = {m.name: m for service in (_DIALOGUE, *_LEARNER) for m in service.methods}
LONE = [name for name, method in METHODS.items() if not method.client_streaming]
_KINDS: dict[str, Any] = {
    **{name: getattr(dialogue_pb2, name) for name in dialogue_pb2.DESCRIPTOR.message_types_by_name},
    **{name: getattr(training_pb2, name) for name in training_pb2.DESCRIPTOR.message_types_by_name},
}


@dataclass(frozen=True)
class Request:
    """One input: bytes, and the message that they are, if they are one."""

    content: bytes
    message: Any

    @classmethod
    def of(cls, content: bytes, kind: type[Message]) -> Request:
        try:
            return cls(content, kind.FromString(content))
        except DecodeError:
            return cls(content, None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    async with Servers.running(tmp_path_factory.mktemp("fuzz")) as servers:
        yield servers


@pytest.fixture(autouse=True)
def _no_fault_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.ERROR)
    yield
    logged = [record.getMessage() for record in caplog.get_records("call")]
    # What a wild trainer says that it published is not there.
    assert not [message for message in logged if "is not broadcast" not in message]


@pytest.mark.parametrize("name", LONE)
async def test_a_wild_request_gets_a_documented_status(servers: Servers, name: str) -> None:
    method = METHODS[name]
    for batch in _batches(f"call {name}", servers, method.input_type.name):
        await servers.renew()
        await asyncio.gather(*(_call(servers, method, request) for request in batch))


async def test_a_stream_of_dialogues_answers_every_message_whatever_it_is(servers: Servers) -> None:
    for batch in _batches("Converse", servers, "ConverseRequest"):
        await servers.renew()
        good = [servers.good_turn(2**40 + number) for number in range(len(batch) // 8 + 1)]
        mixed = list(_mixed(batch, [Request.of(each.SerializeToString(), type(each)) for each in good]))
        parts = [part for each in mixed if each.message for part in (each.message, *each.message.also)]
        replies = await _converse(servers, [request.content for request in mixed])
        asked = Counter(part.correlation_id for part in parts)
        asked[0] += sum(request.message is None for request in mixed)
        assert Counter(reply.correlation_id for reply in replies) == asked
        own = {each.correlation_id for each in good}
        assert all(reply.turn.recorded for reply in replies if reply.correlation_id in own)
        brief = {part.correlation_id for part in parts if 0 < part.timeout_ms < 30_000}
        for reply in replies:
            if reply.HasField("status"):
                also = {grpc.StatusCode.DEADLINE_EXCEEDED} if reply.correlation_id in brief else set()
                _check_status(reply.status, DOCUMENTED - {OK} | also)


async def test_a_stream_of_facts_acknowledges_every_batch_before_one_that_is_none(servers: Servers) -> None:
    numbers = itertools.count()
    for batch in _batches("AppendFacts", servers, "FactBatch"):
        good = [servers.good_batch(f"good{next(numbers)}") for _ in range(len(batch) // 8 + 1)]
        own = {each.SerializeToString() for each in good}
        mixed = list(_mixed(batch, [Request(each.SerializeToString(), each) for each in good]))
        while mixed:
            end = next((at for at, request in enumerate(mixed) if request.message is None), len(mixed))
            read, rest = mixed[:end], mixed[end:]
            acks, status = await _append(servers, read, rest[:1])
            assert status == (INVALID if rest else OK)
            for request, ack in zip(read, acks, strict=True):
                assert ack.sequence == request.message.sequence
                if request.content in own:
                    assert ack.cursor
                    assert not ack.refused
            mixed = rest[1:]


async def test_after_all_that_a_turn_is_answered_and_journaled(servers: Servers) -> None:
    def talk() -> str:
        with turnwise.Client(servers.actor) as bot, bot.dialogue() as talk:
            return talk.act(text="hello", features=[0.0, 0.0]).reward(1).settled

    assert await asyncio.to_thread(talk) == "LEARNER"


async def test_a_wild_trainer_is_told_what_is_wrong(servers: Servers) -> None:
    """Last: a trainer that attaches takes the place of the one that answers operators."""
    with grpc.insecure_channel(servers.local_address) as channel:
        for batch in _batches("Attach", servers, "TrainerMessage"):
            for request in batch:
                status = await asyncio.to_thread(_attach, channel, servers, request.content)
                assert status in DOCUMENTED, request.content.hex()
                assert status == INVALID or request.message is not None, request.content.hex()


# Drawing


def _batches(test: str, servers: Servers, kind: str) -> Iterator[list[Request]]:
    """The inputs of a test, some at a time."""
    drawn = inputs(test, lambda wild: _draw(wild, servers.valid(kind), _KINDS[kind]))
    while batch := list(itertools.islice(drawn, TOGETHER)):
        yield [Request.of(content, _KINDS[kind]) for content in batch]


def _draw(wild: Wild, valid: list[Any], kind: type[Message]) -> bytes:
    """Bytes near a valid request, mostly; any message, one of another type, bytes that are none."""

    def near() -> bytes:
        return wild.near(wild.random.choice(valid)).SerializeToString()

    draws: list[tuple[float, Callable[[], bytes]]] = [
        (10, near),
        (4, lambda: wild.message(kind).SerializeToString()),
        (4, lambda: wild.damaged(near())),
        (1, lambda: wild.message(_KINDS[wild.random.choice(list(_KINDS))]).SerializeToString()),
        (1, lambda: wild.random.randbytes(wild.random.randrange(120))),
    ]
    return wild.random.choices([draw for _, draw in draws], [weight for weight, _ in draws])[0]()


def _mixed(wild: list[Request], good: list[Request]) -> Iterator[Request]:
    """Good ones between the wild ones, and one at the end."""
    for number, request in enumerate(wild):
        if number % 8 == 0:
            yield good[number // 8]
        yield request
    yield good[-1]


# Calling


async def _call(servers: Servers, method: Any, request: Request) -> None:
    """Makes one call with a single request and judges what comes."""
    service = method.containing_service
    channel = servers.frontend if service.name == "Dialogue" else servers.operator
    path = f"/{service.full_name}/{method.name}"
    if method.server_streaming:
        wait_s = TIMEOUT_S if request.message is None else QUIET_S
        status, details = await _heard(channel.unary_stream(path, None, None)(request.content), wait_s)
    else:
        status, details = await _ended(
            channel.unary_unary(path, None, None)(request.content, timeout=TIMEOUT_S)
        )
    told = f"{method.name} {request.content.hex()}: {status} {details}"
    if request.message is None:
        assert status == INVALID, told
    assert status in DOCUMENTED, told
    if status == INVALID:
        _check_status(status_pb2.Status.FromString(details), {INVALID})


async def _ended(call: Any) -> tuple[grpc.StatusCode, bytes]:
    """The status of a call that ends by itself, and its details."""
    if isinstance(call, grpc.aio.UnaryStreamCall | grpc.aio.StreamStreamCall):
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
    code = await asyncio.wait_for(call.code(), TIMEOUT_S)
    metadata: dict[str, Any] = dict(await call.trailing_metadata())
    return code, metadata.get("grpc-status-details-bin", b"")


async def _heard(call: Any, wait_s: float) -> tuple[grpc.StatusCode, bytes]:
    """The status of a call that may go on for ever: OK if it still does after a while."""
    ended = asyncio.create_task(_ended(call))
    await asyncio.wait({ended}, timeout=wait_s)
    if ended.done():
        return await ended
    call.cancel()
    await asyncio.gather(ended, return_exceptions=True)
    return OK, b""


async def _converse(servers: Servers, contents: list[bytes]) -> list[Any]:
    call: Any = servers.frontend.stream_stream(
        "/turnwise.v1.Dialogue/Converse", None, dialogue_pb2.ConverseReply.FromString
    )(iter(contents), timeout=TIMEOUT_S)
    return [each async for reply in call for each in (reply, *reply.also)]


async def _append(
    servers: Servers, batches: list[Request], unreadable: list[Request]
) -> tuple[list[Any], grpc.StatusCode]:
    """Sends batches, and one that is none if there is one, which is to end the stream."""
    call: Any = servers.operator.stream_stream(
        "/turnwise.v1.Training/AppendFacts", None, training_pb2.Ack.FromString
    )(None, timeout=TIMEOUT_S)
    for request in (*batches, *unreadable):
        await call.write(request.content)
    if not unreadable:
        await call.done_writing()
    acks = []
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for ack in call:
            acks.append(ack)
    return acks, await call.code()


def _attach(channel: grpc.Channel, servers: Servers, content: bytes) -> grpc.StatusCode:
    """Says hello and something, from a thread: grpc.aio's client says INTERNAL if it sends at the end."""
    attach = channel.stream_stream("/turnwise.v1.Trainer/Attach", None, None)
    said = iter([servers.hello.SerializeToString(), content])
    call: Any = attach(said, metadata=servers.token, timeout=TIMEOUT_S)
    with contextlib.suppress(grpc.RpcError):
        list(call)
    status: grpc.StatusCode = call.code()
    return status


def _check_status(status: Any, wanted: set[grpc.StatusCode]) -> None:
    """A status that is wanted; one for a wrong request names the fields."""
    codes = {code.value[0]: code for code in grpc.StatusCode}
    assert codes[status.code] in wanted, status
    if codes[status.code] == INVALID:
        bad = status_pb2.BadRequest.FromString(status.details[0].value)
        assert bad.field_violations
        assert all(each.field and each.description for each in bad.field_violations)
