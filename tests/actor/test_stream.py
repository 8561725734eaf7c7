"""A stream to the learner as the uplink uses it, on HTTP/2 of our own and on `grpc.aio`; real servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.authority import Authority
from turnwise_actor.access import client_access
from turnwise_actor.access.client_access import ClientAccess, Link
from turnwise_actor.access.server_access import ServerAccess
from turnwise_actor.http2 import HTTP2
from turnwise_actor.http2.client import Stream, StreamEndedError
from turnwise_actor.http2.server import Http2Server
from turnwise_actor.wires import AioStream

from .raw_http2 import END_HEADERS, END_STREAM, HEADERS, SETTINGS, frame

LIMIT = 4 << 20
PATH = "/test.Echo/Echo"
OWN = pytest.mark.skipif(HTTP2 is None, reason="HTTP/2 is not compiled here")


class Echo:
    """Answers each message with itself; some words mean something else."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []
        self.ended = asyncio.Event()

    async def echo(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.metadata.append(dict(context.invocation_metadata()))
        try:
            async for request in requests:
                if request == b"deny":
                    await context.abort(grpc.StatusCode.PERMISSION_DENIED, "nicht für dich: 100 %")
                if request == b"end":
                    return
                yield request
        finally:
            self.ended.set()

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        method = grpc.stream_stream_rpc_method_handler(self.echo, bytes, bytes)
        return grpc.method_handlers_generic_handler("test.Echo", {"Echo": method})


@contextlib.asynccontextmanager
async def serving(own: bool, echo: Echo, access: ServerAccess | None = None) -> AsyncIterator[str]:
    """A server's address."""
    access = access or ServerAccess()
    server: Any
    if own:
        server = Http2Server((), LIMIT)
        server.add_generic_rpc_handlers((echo.handler(),))
        port = server.bind("127.0.0.1:0", access.ssl_context())
    else:
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMIT)])
        server.add_generic_rpc_handlers((echo.handler(),))
        port = access.bind(server, "127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture(params=[pytest.param(True, marks=OWN, id="own"), pytest.param(False, id="grpc.aio")])
def own_client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(client_access, "HTTP2", None)
    return bool(request.param)


@pytest.fixture(params=[pytest.param(True, marks=OWN, id="to own"), pytest.param(False, id="to grpc.aio")])
def own_server(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def ending(stream: Any) -> StreamEndedError:
    with pytest.raises(StreamEndedError) as ended:
        await asyncio.wait_for(stream.read(), 10)
    return ended.value


async def refused(link: Link) -> StreamEndedError:
    """How a stream ends that does not come about: at once, or when it is read."""
    try:
        stream = await asyncio.wait_for(link.stream(PATH), 10)
    except StreamEndedError as error:
        return error
    return await ending(stream)


@pytest.mark.usefixtures("own_client")
async def test_messages_go_to_and_fro_in_order_and_whole(own_server: bool) -> None:
    sizes = [0, 1, 5, 16_383, 16_384, 65_535, 300_000, LIMIT - 5] + 200 * [1_000]
    async with serving(own_server, echo := Echo()) as address:
        link = Link(address, ClientAccess())
        stream = await link.stream(PATH, max_message_bytes=LIMIT)

        async def write() -> None:
            for number, size in enumerate(sizes):
                half = size // 2
                await stream.write([bytes([number % 251]) * half, bytes([number % 251]) * (size - half)])

        writing = asyncio.create_task(write())
        for number, size in enumerate(sizes):
            assert await asyncio.wait_for(stream.read(), 30) == bytes([number % 251]) * size
        await writing
        stream.cancel()
        await asyncio.wait_for(echo.ended.wait(), 10)
        await link.close()


@pytest.mark.usefixtures("own_client")
async def test_what_was_said_before_the_end_is_read_and_then_the_status(own_server: bool) -> None:
    async with serving(own_server, Echo()) as address:
        link = Link(address, ClientAccess())
        stream = await link.stream(PATH)
        for word in (b"a", b"b", b"deny"):
            await stream.write([word])
        await asyncio.sleep(0.2)
        assert [await stream.read(), await stream.read()] == [b"a", b"b"]
        error = await ending(stream)
        assert (error.code, error.details) == (grpc.StatusCode.PERMISSION_DENIED, "nicht für dich: 100 %")
        with contextlib.suppress(StreamEndedError):
            await stream.write([b"c"])
        assert (await ending(stream)).code == grpc.StatusCode.PERMISSION_DENIED
        await link.close()


@pytest.mark.usefixtures("own_client")
async def test_a_server_that_ends_the_stream_in_peace_has_ended_it(own_server: bool) -> None:
    async with serving(own_server, Echo()) as address:
        link = Link(address, ClientAccess())
        stream = await link.stream(PATH)
        await stream.write([b"end"])
        assert (await ending(stream)).code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
        await link.close()


@pytest.mark.usefixtures("own_client")
async def test_a_server_that_stops_ends_what_is_read(own_server: bool) -> None:
    async with serving(own_server, Echo()) as address:
        link = Link(address, ClientAccess())
        stream = await link.stream(PATH)
        await stream.write([b"a"])
        assert await stream.read() == b"a"
        reading = asyncio.create_task(ending(stream))
        await asyncio.sleep(0)
    assert (await reading).code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert (await refused(link)).code == grpc.StatusCode.UNAVAILABLE
    await link.close()


@pytest.mark.usefixtures("own_client")
async def test_an_unknown_method_is_said_to_be_one(own_server: bool) -> None:
    async with serving(own_server, Echo()) as address:
        link = Link(address, ClientAccess())
        stream = await link.stream("/test.Echo/Nothing")
        assert (await ending(stream)).code == grpc.StatusCode.UNIMPLEMENTED
        await link.close()


@pytest.mark.usefixtures("own_client")
async def test_the_token_is_read_for_every_stream(own_server: bool, tmp_path: Path) -> None:
    file = tmp_path / "token"
    async with serving(own_server, echo := Echo()) as address:
        link = Link(address, ClientAccess(token_file=file))
        for token in ("one", "two"):
            file.write_text(token)
            stream = await link.stream(PATH)
            await stream.write([b"a"])
            assert await stream.read() == b"a"
            stream.cancel()
        assert [each["authorization"] for each in echo.metadata] == ["Bearer one", "Bearer two"]
        await link.close()


@pytest.mark.usefixtures("own_client")
async def test_over_tls_both_sides_show_their_certificates(own_server: bool, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with serving(own_server, Echo(), authority.server(mutual=True)) as address:
        link = Link(address, authority.client("actor"))
        stream = await link.stream(PATH)
        await stream.write([b"x" * 300_000])
        assert await stream.read() == b"x" * 300_000
        stream.cancel()
        await link.close()
        for stranger in (
            ClientAccess(),
            authority.client(),
            Authority(tmp_path / "other").client("actor"),
            ClientAccess(tls=True),
        ):
            link = Link(address, stranger)
            assert (await refused(link)).code == grpc.StatusCode.UNAVAILABLE
            await link.close()


@pytest.mark.usefixtures("own_client")
async def test_a_certificate_made_out_to_another_name_counts_if_that_is_expected(
    own_server: bool, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("learner", hosts=("learner.internal",))
    async with serving(own_server, Echo(), authority.server(pair=pair)) as address:
        for name, fits in (("", False), ("other.internal", False), ("learner.internal", True)):
            link = Link(address, ClientAccess(ca=authority.file, server_name=name))
            if fits:
                stream = await link.stream(PATH)
                await stream.write([b"a"])
                assert await stream.read() == b"a"
                stream.cancel()
            else:
                assert (await refused(link)).code == grpc.StatusCode.UNAVAILABLE
            await link.close()


@pytest.mark.usefixtures("own_client")
async def test_renewed_certificates_count_for_the_next_stream(own_server: bool, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(other.file.read_bytes())
    async with serving(own_server, Echo(), authority.server()) as address:
        link = Link(address, ClientAccess(ca=trusted))
        assert (await refused(link)).code == grpc.StatusCode.UNAVAILABLE
        trusted.write_text("half of a certif")
        assert (await refused(link)).code == grpc.StatusCode.UNAVAILABLE
        trusted.write_bytes(authority.file.read_bytes())
        stream = await link.stream(PATH)
        await stream.write([b"a"])
        assert await stream.read() == b"a"
        stream.cancel()
        await link.close()


@OWN
async def test_what_goes_by_a_proxy_goes_by_grpc_which_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(True, Echo()) as address:
        for proxy, kind in (("", Stream), ("http://127.0.0.1:9", AioStream)):
            monkeypatch.setenv("https_proxy", proxy)
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            link = Link(address.replace("127", "dns:///127"), ClientAccess())
            stream = await link.stream(PATH)
            assert type(stream) is kind
            await stream.write([b"a"])
            assert await stream.read() == b"a"
            stream.cancel()
            await link.close()


@OWN
@pytest.mark.parametrize(
    ("says", "code"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", grpc.StatusCode.UNAVAILABLE),
        (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", grpc.StatusCode.UNAVAILABLE),
        (b"\xff" * 1_000, grpc.StatusCode.UNAVAILABLE),
        (b"", grpc.StatusCode.UNAVAILABLE),
    ],
    ids=["of HTTP/1", "of HTTP/2 without an answer", "at random", "nothing"],
)
async def test_what_is_no_grpc_server_is_an_end(says: bytes, code: grpc.StatusCode) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(says)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        link = Link(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", ClientAccess())
        assert (await refused(link)).code == code
        await link.close()


@OWN
async def test_a_message_that_is_too_large_is_an_end(own_server: bool) -> None:
    async with serving(own_server, Echo()) as address:
        link = Link(address, ClientAccess())
        stream = await link.stream(PATH, max_message_bytes=1_000)
        await stream.write([b"x" * 1_000])
        assert len(await stream.read()) == 1_000
        await stream.write([b"x" * 1_001])
        assert (await ending(stream)).code == grpc.StatusCode.RESOURCE_EXHAUSTED
        stream.cancel()
        await link.close()


@OWN
@pytest.mark.parametrize(
    ("status", "code"),
    [("403", grpc.StatusCode.PERMISSION_DENIED), ("502", grpc.StatusCode.UNAVAILABLE)],
)
async def test_what_lies_between_may_answer_for_the_server(status: str, code: grpc.StatusCode) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        block = b"\x08" + bytes((len(status),)) + status.encode()  # :status, from the static table
        writer.write(frame(SETTINGS) + frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        link = Link(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", ClientAccess())
        error = await refused(link)
        assert (error.code, error.details) == (code, f"no gRPC server answers there: HTTP {status}")
        await link.close()
