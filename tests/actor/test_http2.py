"""The HTTP/2 server: what gRPC's own clients see of it, and what clients that do as they like do to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.authority import Authority
from turnwise_actor.http2 import HTTP2, connection
from turnwise_actor.http2.call import Call
from turnwise_actor.http2.metadata import read_metadata, read_timeout, write_metadata, write_status
from turnwise_actor.http2.server import Http2Server

from .conftest import eventually
from .raw_http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    frame,
    frames,
    greeting,
    head,
    message,
    messages,
)

pytestmark = pytest.mark.skipif(HTTP2 is None, reason="the HTTP/2 server is not compiled here")

LIMIT = 4 << 20
NAME = "test.Echo"


class Echo:
    """A servicer of bytes with a method of each kind."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.contexts: list[Any] = []
        self.read = 0

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.contexts.append(context)
        return request

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([request async for request in requests])

    async def repeat(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield request

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            self.read += 1
            yield request

    async def wait(self, request: bytes, context: Any) -> bytes:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request

    async def deaf(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        self.begun.set()
        await self.go_on.wait()
        return b"%d" % sum([1 async for _ in requests])

    async def flood(self, request: bytes, context: Any) -> None:
        self.contexts.append(context)
        for _ in range(1000):
            await context.write(bytes(10_000))
            self.read += 1

    async def refuse(self, request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "nö, 100 %\n", (("why-bin", b"\0\xff"), ("why", "so")))
        raise AssertionError

    async def fail(self, request: bytes, context: Any) -> bytes:
        raise KeyError("a fault")

    def handler(self) -> Any:
        kinds = {
            grpc.unary_unary_rpc_method_handler: ("unary", "wait", "refuse", "fail"),
            grpc.stream_unary_rpc_method_handler: ("collect", "deaf"),
            grpc.unary_stream_rpc_method_handler: ("repeat", "flood"),
            grpc.stream_stream_rpc_method_handler: ("stream",),
        }
        methods = {
            name: make(getattr(self, name), bytes, bytes) for make, names in kinds.items() for name in names
        }
        return grpc.method_handlers_generic_handler(NAME, methods)


class Served:
    """A server, its servicer, and a channel to it."""

    def __init__(self, server: Http2Server, echo: Echo, port: int) -> None:
        self.server, self.echo, self.port = server, echo, port
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", [("grpc.max_receive_message_length", -1)]
        )

    def call(self, name: str, kind: str = "unary_unary") -> Any:
        return getattr(self.channel, kind)(f"/{NAME}/{name}")

    async def connect(self) -> Raw:
        return Raw(*await asyncio.open_connection("127.0.0.1", self.port))


class Raw:
    """A client that sends bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.received = b""

    def send(self, *parts: bytes) -> None:
        self._writer.write(b"".join(parts))

    def call(self, name: str, *payloads: bytes, **others: str) -> None:
        """A whole call; each payload in a frame."""
        self.send(frame(HEADERS, END_HEADERS, 1, head(f"/{NAME}/{name}", **others)))
        for number, payload in enumerate(payloads):
            self.send(frame(DATA, END_STREAM if number == len(payloads) - 1 else 0, 1, payload))

    async def until(self, condition: Callable[[], Any]) -> None:
        """Reads until it is so."""
        async with asyncio.timeout(8):
            while not condition():
                part = await self._reader.read(65_536)
                assert part, f"hung up on; received {self.received!r}"
                self.received += part

    async def until_closed(self) -> None:
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(8):
                while part := await self._reader.read(65_536):
                    self.received += part

    def kinds(self) -> set[int]:
        return {kind for kind, *_ in frames(self.received)}

    def ended(self, stream: int = 1) -> bool:
        return any(of == stream and flags & END_STREAM for _, flags, of, _ in frames(self.received))

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@contextlib.asynccontextmanager
async def serving(address: str = "127.0.0.1:0", tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    server, echo = Http2Server((), LIMIT), Echo()
    server.add_generic_rpc_handlers((echo.handler(),))
    port = server.bind(address, tls)
    await server.start()
    served = Served(server, echo, port)
    yield served
    echo.go_on.set()
    await served.channel.close(None)
    await server.stop(0)


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code()


async def each(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


# What gRPC's own clients see.


async def test_calls_of_every_kind(served: Served) -> None:
    parts = [b"a", b"", b"ccc"]
    assert await served.call("unary")(b"hello") == b"hello"
    assert await served.call("collect", "stream_unary")(each(parts)) == b"accc"
    assert [reply async for reply in served.call("repeat", "unary_stream")(b"x")] == [b"x"] * 3
    assert [reply async for reply in served.call("stream", "stream_stream")(each(parts))] == parts


async def test_a_blocking_client_is_served_as_well(served: Served) -> None:
    def call() -> Any:
        with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            return channel.unary_unary(f"/{NAME}/unary", None, None)(b"hello", timeout=5)

    assert await asyncio.to_thread(call) == b"hello"


@pytest.mark.parametrize("size", [16_379, 16_384, 70_000, LIMIT - 1000])
async def test_messages_larger_than_frames_and_windows(served: Served, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    assert await served.call("unary")(content[:size]) == content[:size]
    stream = served.call("stream", "stream_stream")(each([content[:size], b"", content[: size // 3]]))
    assert [len(reply) async for reply in stream] == [size, 0, size // 3]


async def test_a_message_over_the_limit_is_refused(served: Served) -> None:
    assert await code_of(served.call("unary")(bytes(LIMIT + 1))) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await served.call("unary")(b"and it goes on") == b"and it goes on"


async def test_many_calls_at_once_on_one_connection(served: Served) -> None:
    many = connection.MAX_CALLS + 500
    replies = await asyncio.gather(*(served.call("unary")(b"%d" % number) for number in range(many)))
    assert replies == [b"%d" % number for number in range(many)]
    assert len(served.server.connections) == 1


async def test_metadata_of_both_sides(served: Served) -> None:
    given = (("name", "value"), ("raw-bin", bytes(range(256))))
    await served.call("unary")(b"", metadata=given)
    context = served.echo.contexts[0]
    assert set(given) <= set(context.invocation_metadata())
    assert context.peer().startswith("ipv4:127.0.0.1:")
    assert context.auth_context() == {}
    assert context.time_remaining() is None


async def test_a_status_with_message_and_details(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await served.call("refuse")(b"")
    error = failed.value
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "nö, 100 %\n")
    assert {("why-bin", b"\0\xff"), ("why", "so")} <= set(error.trailing_metadata() or ())


async def test_a_fault_of_the_servicer_is_unknown_and_logged(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    assert await code_of(served.call("fail")(b"")) is grpc.StatusCode.UNKNOWN
    assert "a fault" in caplog.text


async def test_an_unknown_method(served: Served) -> None:
    assert await code_of(served.call("nothing")(b"")) is grpc.StatusCode.UNIMPLEMENTED


async def test_a_deadline_ends_the_servicer_too(served: Served) -> None:
    assert await code_of(served.call("wait")(b"", timeout=0.2)) is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(served.echo.cancelled.wait(), 5)


async def test_a_client_that_hangs_up_ends_the_servicer(served: Served) -> None:
    calling = served.call("wait")(b"")
    await asyncio.wait_for(served.echo.begun.wait(), 5)
    calling.cancel()
    await asyncio.wait_for(served.echo.cancelled.wait(), 5)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests(served: Served, compression: grpc.Compression) -> None:
    content = b"words " * 1000
    assert await served.call("unary")(content, compression=compression) == content
    stream = served.call("stream", "stream_stream")(each([content, b"x"]), compression=compression)
    assert [reply async for reply in stream] == [content, b"x"]


async def test_a_servicer_that_does_not_read_holds_its_client_back(served: Served) -> None:
    call = served.call("deaf", "stream_unary")()
    await asyncio.wait_for(served.echo.begun.wait(), 5)
    written = 0

    async def write() -> None:
        nonlocal written
        for _ in range(1000):
            await call.write(bytes(10_000))
            written += 1
        await call.done_writing()

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.3)
    # One window here, and what gRPC's client and the system keep.
    assert written * 10_000 < 16 * connection.WINDOW_BYTES
    (one,) = served.server.connections
    assert sum(call.unread for call in one.calls) * 10_000 <= connection.WINDOW_BYTES
    served.echo.go_on.set()
    assert await call == b"1000"
    await writing


async def test_a_client_that_does_not_read_holds_its_servicer_back(served: Served) -> None:
    raw = await served.connect()
    raw.send(greeting())
    raw.call("flood", message(b""))
    await asyncio.sleep(0.3)
    unsent = max(context.unsent for context in served.echo.contexts)
    assert unsent <= 64 * 1024 + 10_005
    assert served.echo.read < 1000
    await raw.until(raw.ended)
    assert len(messages(raw.received)) == 1000
    await raw.close()


# The end.


async def test_stopping_lets_a_call_finish_and_takes_no_more(served: Served) -> None:
    calling = asyncio.ensure_future(served.call("wait")(b"done"))
    await asyncio.wait_for(served.echo.begun.wait(), 5)
    stopping = asyncio.create_task(served.server.stop(5))
    await asyncio.sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        await served.connect()
    served.echo.go_on.set()
    assert await calling == b"done"
    await asyncio.wait_for(stopping, 2)
    assert not served.server.connections


async def test_a_call_that_outlives_the_grace_is_ended(served: Served) -> None:
    calling = asyncio.ensure_future(served.call("wait")(b""))
    await asyncio.wait_for(served.echo.begun.wait(), 5)
    await asyncio.wait_for(served.server.stop(0.2), 2)
    assert await code_of(calling) is grpc.StatusCode.UNAVAILABLE
    assert served.echo.cancelled.is_set()


async def test_clients_are_told_of_the_end(served: Served) -> None:
    raw = await served.connect()
    raw.send(greeting())
    await eventually(lambda: served.server.connections)
    stopping = asyncio.create_task(served.server.stop(1))
    await raw.until_closed()
    assert GOAWAY in raw.kinds()
    await stopping
    await raw.close()


async def test_nothing_of_a_connection_is_left(served: Served) -> None:
    for _ in range(20):
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{served.port}", [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            await channel.unary_unary(f"/{NAME}/unary", None, None)(b"hello")
    await eventually(lambda: not served.server.connections)
    served.echo.contexts.clear()

    def left() -> list[Call]:
        gc.collect()
        calls = [each for each in gc.get_objects() if type(each) is Call]
        return [call for call in calls if call._connection.server is served.server]

    await eventually(lambda: not left())


# Addresses.


@pytest.mark.parametrize("address", ["localhost:0", "[::]:0", "0.0.0.0:0", ":0"])
async def test_addresses_of_this_machine(address: str) -> None:
    async with serving(address) as served:
        assert await served.call("unary")(b"hello") == b"hello"


async def test_an_address_in_use_cannot_be_had_twice(served: Served) -> None:
    with pytest.raises(OSError, match="in use"):
        Http2Server((), LIMIT).bind(f"127.0.0.1:{served.port}", None)
    first, second = Http2Server((), LIMIT), Http2Server((), LIMIT)
    port = first.bind("127.0.0.1:0", None)
    with pytest.raises(OSError, match="in use"):  # also before anybody serves there
        second.bind(f"127.0.0.1:{port}", None)
    await first.stop(0)


async def test_a_client_without_http2_in_its_handshake_is_hung_up_on(tmp_path: Any) -> None:
    authority = Authority(tmp_path / "ca")
    async with serving(tls=authority.server().ssl_context()) as served:
        context = ssl.create_default_context(cafile=authority.file)
        opened = await asyncio.open_connection(
            "127.0.0.1", served.port, ssl=context, server_hostname="localhost"
        )
        raw = Raw(*opened)
        raw.send(greeting())
        await raw.until_closed()
        assert not raw.received
        await raw.close()


async def test_no_ticket_shortens_a_handshake(tmp_path: Any) -> None:
    authority = Authority(tmp_path / "ca")
    context = ssl.create_default_context(cafile=authority.file)
    context.set_alpn_protocols(["h2"])

    def shake_hands(port: int, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        raw = socket.create_connection(("127.0.0.1", port))
        with context.wrap_socket(raw, server_hostname="localhost", session=session) as tls:
            tls.recv(1)  # what comes after the handshake, tickets among it
            return tls.session, tls.session_reused

    async with serving(tls=authority.server().ssl_context()) as served:
        session, _ = await asyncio.to_thread(shake_hands, served.port, None)
        _, reused = await asyncio.to_thread(shake_hands, served.port, session)
        assert not reused


# Clients that do as they like.


async def test_a_raw_call_is_answered(served: Served) -> None:
    raw = await served.connect()
    raw.send(greeting())
    content = message(b"one") + message(b"two")
    raw.call("stream", *(content[at : at + 3] for at in range(0, len(content), 3)))
    await raw.until(raw.ended)
    assert messages(raw.received) == [b"one", b"two"]
    await raw.close()


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", 13),  # no request
        (b"\0\0\0\0", 13),  # half a prefix
        (message(b"whole") + b"\0\0\0\0\5half", 13),
        (message(b"one") + message(b"two"), 13),
        (b"\2" + message(b"x")[1:], 13),
        (message(b"never compressed", compressed=True), 13),
        (b"\0\xff\xff\xff\xff", 8),
    ],
)
async def test_bytes_that_are_no_request(served: Served, payload: bytes, code: int) -> None:
    assert await status_of(served, "unary", payload) == code


async def status_of(served: Served, name: str, *payloads: bytes, **others: str) -> int:
    """The status of a raw call, told by the session that answers it."""
    told: list[int] = []
    end = Call.end

    def noted(call: Any, code: grpc.StatusCode, *rest: Any) -> None:
        if not call.finished:
            told.append(code.value[0])
        end(call, code, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Call, "end", noted)
        raw = await served.connect()
        raw.send(greeting())
        raw.call(name, *payloads, **others)
        await raw.until(raw.ended)
        await raw.close()
    return told[0]


async def test_what_is_compressed_is_never_more_than_the_limit(served: Served) -> None:
    squeezed = gzip.compress(bytes(LIMIT + 1))
    sent = message(squeezed, compressed=True)
    assert await status_of(served, "unary", sent, grpc_encoding="gzip") == 8
    torn = message(squeezed[:-20], compressed=True)
    assert await status_of(served, "unary", torn, grpc_encoding="gzip") == 13
    short = message(gzip.compress(b"x" * 100)[:-4], compressed=True)
    assert await status_of(served, "unary", short, grpc_encoding="gzip") == 13
    assert await status_of(served, "unary", message(b"no gzip", compressed=True), grpc_encoding="gzip") == 13
    assert await status_of(served, "unary", message(b"x"), grpc_encoding="zstd") == 12


@pytest.mark.parametrize(
    ("others", "status"),
    [({":method": "GET"}, b"405"), ({"content_type": "text/html"}, b"415"), ({"content_type": ""}, b"415")],
)
async def test_what_is_no_grpc_gets_a_bare_status(served: Served, others: Any, status: bytes) -> None:
    raw = await served.connect()
    raw.send(greeting())
    raw.call("unary", message(b"x"), **others)
    await raw.until(raw.ended)
    assert not messages(raw.received)
    assert not served.echo.contexts
    session = HTTP2.Session(HTTP2.Call, LIMIT, 1, 1 << 16)  # type: ignore[union-attr]
    session.receive(greeting() + frame(HEADERS, END_HEADERS, 1, head("/x")))
    (call,) = session.news()
    session.send()
    call.refuse(status)
    assert session.send()[:9] == raw_head_of(raw.received)
    await raw.close()


def raw_head_of(received: bytes) -> bytes:
    """The frame head of the response's headers."""
    kind, flags, stream, payload = next(each for each in frames(received) if each[0] == HEADERS)
    return frame(kind, flags, stream, payload)[:9]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        greeting() + frame(DATA, 0, 1, b"of no call"),
        greeting() + frame(HEADERS, END_HEADERS, 2, head("/even")),
        greeting() + frame(HEADERS, END_HEADERS, 1, b"\xff" * 50),
        greeting() + frame(PING, 0, 1, bytes(8)),
        greeting() + frame(PING, 0, 0, bytes(7)),
        greeting() + b"\xff\xff\xff\0\0\0\0\0\1",
    ],
    ids=["http1", "tls", "data", "even", "hpack", "ping-stream", "ping-size", "huge"],
)
async def test_what_is_no_http2_is_hung_up_on(served: Served, sent: bytes) -> None:
    raw = await served.connect()
    raw.send(sent)
    await raw.until_closed()
    await raw.close()
    assert await served.call("unary")(b"others go on") == b"others go on"


async def test_a_client_that_says_nothing_is_hung_up_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_GREETING_S", 0.1)
    raw = await served.connect()
    await raw.until_closed()
    await raw.close()


async def test_calls_begun_and_reset_in_a_flood_end_the_connection(served: Served) -> None:
    raw = await served.connect()
    raw.send(greeting())
    block = head(f"/{NAME}/wait")
    for stream in range(1, 20_001, 2):
        raw.send(
            frame(HEADERS, END_HEADERS, stream, block),
            frame(DATA, END_STREAM, stream, message(b"")),
            frame(RST_STREAM, 0, stream, (8).to_bytes(4, "big")),
        )
    await raw.until_closed()
    await raw.close()
    await eventually(lambda: not served.server._tasks)
    assert await served.call("unary")(b"others go on") == b"others go on"


async def test_a_ping_is_answered_while_a_call_waits(served: Served) -> None:
    raw = await served.connect()
    raw.send(greeting())
    raw.call("wait", message(b""))
    await asyncio.wait_for(served.echo.begun.wait(), 5)
    raw.send(frame(PING, payload=b"12345678"))
    await raw.until(lambda: (PING, 1, 0, b"12345678") in list(frames(raw.received)))
    await raw.close()


async def test_a_connection_that_breaks_ends_its_calls(served: Served) -> None:
    raw = await served.connect()
    raw.send(greeting())
    raw.call("wait", message(b""))
    await asyncio.wait_for(served.echo.begun.wait(), 5)
    await raw.close()
    await asyncio.wait_for(served.echo.cancelled.wait(), 5)


async def test_a_deadline_that_is_none_is_refused(served: Served) -> None:
    assert await status_of(served, "unary", message(b"x"), grpc_timeout="soon") == 13


async def test_an_interceptor_that_waits_is_a_mistake_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    class Waiting(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            await asyncio.sleep(0)

    caplog.set_level(logging.CRITICAL)
    with pytest.raises(TypeError, match="waits"):
        Http2Server((Waiting(),), LIMIT).handler_of(b"/a/b", ())


# Metadata.


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"100m", 0.1), (b"5S", 5), (b"2M", 120), (b"1H", 3600), (b"99999999u", 99.999999)]
)
def test_timeouts(value: bytes, seconds: float) -> None:
    assert read_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"S", b"1", b"1x", b"-1S", b"123456789S", b"1.5S"])
def test_timeouts_that_are_none(value: bytes) -> None:
    with pytest.raises(ValueError, match="grpc-timeout: got"):
        read_timeout(value)


def test_metadata_there_and_back() -> None:
    given = (("name", "value"), ("raw-bin", b"\0\xff"), ("empty", ""))
    assert read_metadata(write_metadata(given)) == given
    with pytest.raises(ValueError, match="x-bin: got b'!'; wanted base64"):
        read_metadata([(b"x-bin", b"!")])


def test_a_message_of_a_status_is_percent_encoded() -> None:
    fields = dict(write_status(grpc.StatusCode.INTERNAL, "50 % ü\n"))
    assert fields == {b"grpc-status": b"13", b"grpc-message": b"50 %25 %C3%BC%0A"}


def test_sockets_ask_for_clients_that_are_gone() -> None:
    server = Http2Server((), LIMIT)
    server.bind("127.0.0.1:0", None)
    (one,) = server._sockets
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    one.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="of Linux")
async def test_a_machine_that_is_gone_is_given_up_in_the_time_that_is_asked_for() -> None:
    server = Http2Server((), LIMIT, silence_s=10)
    port = server.bind("127.0.0.1:0", None)
    await server.start()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    await eventually(lambda: len(server.connections) == 1)
    taken = next(iter(server.connections))._transport.get_extra_info("socket")
    told = {
        name: taken.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    }
    assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert told == {
        "TCP_KEEPIDLE": 10,
        "TCP_KEEPINTVL": 5,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 25_000,
    }
    writer.close()
    await server.stop(0)
