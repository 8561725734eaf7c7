"""One call: what its servicer sees of it, and how it comes to its end."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from turnwise_actor.access.handlers import behaviour_of, drive
from turnwise_actor.http2 import HTTP2
from turnwise_actor.http2.carrier import wake
from turnwise_actor.http2.metadata import Metadata, Value, read_metadata, read_timeout, write_status

if TYPE_CHECKING:
    from turnwise_actor.http2.connection import Connection

_UNSENT_BYTES = 64 * 1024
"""A client that lets so many bytes lie is waited for."""
_LISTENED_UNSENT_BYTES = 1 << 20
"""The same of a conversation, whose requests are then left with the client."""
_AT_ONCE = 256
"""Messages of one call; others have their turn before it has another."""
_DEFLATED = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
_CODES = {code.value[0]: code for code in grpc.StatusCode}

logger = logging.getLogger(__name__)

_Wire: Any = object if HTTP2 is None else HTTP2.Call


class Call(_Wire):  # type: ignore[misc]
    """Does for a servicer what `grpc.aio.ServicerContext` does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = connection.loop
        self._handler: Any = None
        self._task: asyncio.Task[None] | None = None
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._due_at = float("inf")
        self._room_at = 0
        self._take: Callable[[list[bytes]], None] | None = None
        self._listened: asyncio.Future[None] | None = None
        self._metadata: Metadata | None = None
        self._begun = self._given_up = False

    # What has become of it on the wire.

    def news(self) -> None:
        """Something has come, or has gone."""
        if self.closed:
            self._over()
            return
        if self.fault is not None:
            code, message = self.fault
            self.end(_CODES[code], message)
            return
        if not self._begun:
            self._begin()
        if self._task is None and (self.ended or self.unread) and not self.finished:
            self._serve_soon()
        if self._take is not None:
            self._hand_over()
        else:
            wake(self._reading)
        if self._writing is not None and self.unsent <= self._room_at:
            wake(self._writing)

    def _begin(self) -> None:
        self._begun = True
        head = self.head
        if head.get(b":method") != b"POST":
            self.refuse(b"405")
        elif not head.get(b"content-type", b"").startswith(b"application/grpc"):
            self.refuse(b"415")
        elif (encoding := head.get(b"grpc-encoding", b"identity")) not in (b"identity", *_DEFLATED):
            message = f"messages are compressed by {encoding[:20]!r}; wanted gzip, deflate or identity"
            self.end(grpc.StatusCode.UNIMPLEMENTED, message)
        else:
            self._prepare(head)
        self._connection.flush_soon()

    def _prepare(self, head: dict[bytes, bytes]) -> None:
        try:
            if (timeout := head.get(b"grpc-timeout")) is not None:
                timeout_s = read_timeout(timeout)
                self._due_at = time.monotonic() + timeout_s
                self._deadline = self._loop.call_later(timeout_s, self._expire)
            self._metadata = read_metadata(self.metadata)
        except ValueError as error:
            self.end(grpc.StatusCode.INTERNAL, str(error))
            return
        self._handler = self._connection.server.handler_of(head[b":path"], self._metadata)
        if self._handler is None:
            self.end(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        elif self._handler.request_streaming:
            self._serve_soon()

    def _serve_soon(self) -> None:
        self._task = self._loop.create_task(self._serve())
        self._connection.server.began(self._task)

    def _expire(self) -> None:
        self.end(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _over(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._give_up()
        wake(self._writing)

    def _give_up(self) -> None:
        """Cancels the servicer, once: what it does in its `finally` is left to it."""
        if self._task is not None and not self._given_up and self._task is not asyncio.current_task():
            self._given_up = True
            self._task.cancel()

    # The servicer's side.

    async def _serve(self) -> None:
        handler = self._handler
        try:
            request = _Requests(self) if handler.request_streaming else self._only_request()
            answering = behaviour_of(handler)(request, self)
            if handler.response_streaming:
                await drive(answering, self)
            else:
                await self.write(await answering)
            self.end(grpc.StatusCode.OK)
        except grpc.aio.AbortError:
            pass  # its status is on its way
        except asyncio.CancelledError:
            self.end(grpc.StatusCode.CANCELLED, "the server has given the call up")
            raise
        except Exception as error:
            logger.exception("%s failed", self.head[b":path"].decode("latin-1"))
            self.end(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")

    def _only_request(self) -> Any:
        if self.unread != 1:
            self._abort(grpc.StatusCode.INTERNAL, f"{self.unread} requests; wanted one")
        return self._handler.request_deserializer(self._message())

    def _message(self) -> bytes:
        """The next message, as its client made it."""
        message: bytes | tuple[bytes] = self.take()
        if isinstance(message, bytes):
            return message
        return self._inflated(*message)

    def _plain(self, messages: list[bytes | tuple[bytes]]) -> list[bytes]:
        return [each if isinstance(each, bytes) else self._inflated(*each) for each in messages]

    def _inflated(self, content: bytes) -> bytes:
        encoding = self.head.get(b"grpc-encoding", b"identity")
        if encoding not in _DEFLATED:
            self._abort(grpc.StatusCode.INTERNAL, "a message is compressed; grpc-encoding says by nothing")
        most = self._connection.server.max_message_bytes
        inflating = zlib.decompressobj(_DEFLATED[encoding])
        try:
            message = inflating.decompress(content, most + 1)
        except zlib.error as error:
            self._abort(grpc.StatusCode.INTERNAL, f"a message cannot be decompressed: {error}")
        if len(message) > most:
            told = f"a message of more than {most} bytes once decompressed"
            self._abort(grpc.StatusCode.RESOURCE_EXHAUSTED, told)
        if not inflating.eof:
            self._abort(grpc.StatusCode.INTERNAL, "a compressed message ends within itself")
        return message

    async def read(self) -> Any:
        """The next request, deserialized; `grpc.aio.EOF` when the client has ended its side."""
        while not self.unread:
            if self.ended:
                return _EOF
            self._reading = self._loop.create_future()
            await self._reading
        request = self._handler.request_deserializer(self._message())
        self._connection.flush_soon()  # the client is told that there is room
        return request

    async def write(self, reply: Any) -> None:
        """Sends a reply; waits while the client lets too many lie."""
        self.send_all([self._handler.response_serializer(reply)])
        self._connection.flush_soon()
        if self.unsent > _UNSENT_BYTES:
            await self._until_unsent(_UNSENT_BYTES // 2)

    async def _until_unsent(self, size: int) -> None:
        """Returns when no more is unsent, or the call is over."""
        self._room_at = size
        while self.unsent > size and not self.closed:
            self.tell_when_sent(size)
            self._writing = self._loop.create_future()
            await self._writing

    # As `conversation.Wire` has it.

    def listen(self, take: Callable[[list[bytes]], None]) -> asyncio.Future[None]:  # noqa: D102
        self._take, self._listened = take, self._loop.create_future()
        self._hand_over()
        self._connection.flush_soon()
        return self._listened

    def stop_listening(self) -> None:  # noqa: D102
        self._take = None

    def send(self, replies: list[bytes | list[bytes]]) -> None:  # noqa: D102
        self.send_all(replies)
        self._connection.flush_soon()

    async def sent(self) -> None:  # noqa: D102
        await self._until_unsent(0)

    def _hand_over_more(self) -> None:
        if self._take is not None and not self.finished and not self.closed:
            self._hand_over()
            self._connection.flush_soon()  # the client is told that there is room

    def _hand_over(self) -> None:
        """Gives what has come to who listens, unless the client lets too much lie."""
        assert self._take is not None
        assert self._listened is not None
        if self.unread:
            if self.unsent > _LISTENED_UNSENT_BYTES:
                self.tell_when_sent(_LISTENED_UNSENT_BYTES // 2)
                return
            messages = self.take_some(_AT_ONCE)
            if self.unread:
                self._loop.call_soon(self._hand_over_more)
            try:
                self._take(self._plain(messages) if self.compressed else messages)
            except grpc.aio.AbortError:
                return  # its status is on its way
        if self.ended and not self.unread and not self._listened.done():
            self._listened.set_result(None)

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Sequence[tuple[str, Value]] = (),
    ) -> NoReturn:
        """Ends the call with a status. Raises grpc.aio.AbortError always."""
        self._abort(code, details, trailing_metadata)

    def _abort(
        self, code: grpc.StatusCode, message: str, metadata: Sequence[tuple[str, Value]] = ()
    ) -> NoReturn:
        self.end(code, message, metadata)
        raise grpc.aio.AbortError(message)

    def invocation_metadata(self) -> Metadata:
        """What the client sent beside its requests."""
        return self._metadata or ()

    def auth_context(self) -> dict[str, list[bytes]]:
        """The client's certificate, as gRPC tells it; empty: it has shown none."""
        return self._connection.auth_context()

    def peer(self) -> str:
        """Where the client is."""
        return self._connection.peer

    def time_remaining(self) -> float | None:
        """Seconds until the client no longer waits; None: it waits for ever."""
        return None if self._deadline is None else max(0.0, self._due_at - time.monotonic())

    # Its end.

    def end(
        self, code: grpc.StatusCode, message: str = "", metadata: Sequence[tuple[str, Value]] = ()
    ) -> None:
        """Ends the call with a status, unless it has one."""
        if self.finished or self.closed:
            return
        self.finish(write_status(code, message, metadata))
        if self._deadline is not None:
            self._deadline.cancel()
        self._give_up()
        self._connection.flush_soon()


class _Requests:
    """The requests of a stream, for those who iterate."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        request = await self._call.read()
        if request is _EOF:
            raise StopAsyncIteration
        return request
