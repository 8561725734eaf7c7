"""A stream to a gRPC server, as a client: a connection of its own that carries one call."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import grpc

from turnwise_actor.http2 import HTTP2
from turnwise_actor.http2.carrier import Carrier, wake
from turnwise_actor.http2.metadata import Fields, Value, write_metadata

_WINDOW_BYTES = 1 << 20
"""On their way here or not yet read."""
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_BY_HTTP_STATUS = {
    b"400": grpc.StatusCode.INTERNAL,
    b"401": grpc.StatusCode.UNAUTHENTICATED,
    b"403": grpc.StatusCode.PERMISSION_DENIED,
    b"404": grpc.StatusCode.UNIMPLEMENTED,
}
"""By HTTP status, of what is no gRPC server (gRPC's http-grpc-status-mapping.md); others are UNAVAILABLE."""

_Wire: Any = object if HTTP2 is None else HTTP2.Call


class StreamEndedError(Exception):
    """The server, or what lies between, has ended the stream; or it could not be begun."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code, self.details = code, details


class Stream(_Wire):  # type: ignore[misc]
    """Messages to and fro, from `open_stream` until one side ends it. Used by one reader and one writer."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._waiting: asyncio.Future[None] | None = None

    def news(self) -> None:
        """Something has come."""
        wake(self._waiting)

    async def read(self) -> bytes:
        """The next message of the server. Raises StreamEndedError."""
        while not self.unread:
            if self.closed or self.ended or self.fault is not None:
                self.cancel()  # the connection was for this alone
                raise self._end()
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        message = self.take()
        if not isinstance(message, bytes):
            self.cancel()
            raise StreamEndedError(grpc.StatusCode.INTERNAL, "a message is compressed, unasked")
        self._connection.flush_soon()  # the server is told that there is room
        return message

    async def write(self, message: list[bytes]) -> None:
        """Sends a message, given in parts; nothing happens when the stream has ended, which `read` tells."""
        self.send_all([message])
        self._connection.flush_soon()

    def cancel(self) -> None:
        """Ends it here and now."""
        self._connection.abort()

    def _end(self) -> StreamEndedError:
        if self.fault is not None:
            return StreamEndedError(_CODES[self.fault[0]], self.fault[1])
        told = dict(self.metadata)
        status = told.get(b"grpc-status", b"")
        if status.isdigit():
            details = unquote(told.get(b"grpc-message", b"").decode("latin-1"))
            return StreamEndedError(_CODES.get(int(status), grpc.StatusCode.UNKNOWN), details)
        answered = self.head.get(b":status", b"")
        if answered in (b"", b"200"):
            return StreamEndedError(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        code = _BY_HTTP_STATUS.get(answered, grpc.StatusCode.UNAVAILABLE)
        return StreamEndedError(code, f"no gRPC server answers there: HTTP {answered.decode('latin-1')}")


class _Connection(Carrier):
    """The client's end: one call is all that it carries."""

    def __init__(self, head: Fields, max_message_bytes: int) -> None:
        super().__init__(asyncio.get_running_loop())
        self.stream = Stream(self)
        self._head, self._max_message_bytes = head, max_message_bytes

    def connection_made(self, transport: Any) -> None:
        """A server is there."""
        assert HTTP2 is not None
        self._transport = transport
        self._session = HTTP2.Session(None, self._max_message_bytes, 0, _WINDOW_BYTES)
        self._session.begin(self.stream, self._head)
        self.flush_soon()


async def open_stream(
    address: str,
    path: str,
    metadata: Iterable[tuple[str, Value]],
    tls: ssl.SSLContext | None,
    server_name: str,
    max_message_bytes: int,
) -> Stream:
    """Connects to HOST:PORT and begins a call there.

    `path` is the method's; `server_name` what the certificate is made out to, if it is not the host.

    Raises:
        StreamEndedError: Nobody answers there, or not with the certificate that is wanted.
    """
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    head = {
        ":method": "POST",
        ":scheme": "http" if tls is None else "https",
        ":path": path,
        ":authority": f"{server_name or host}:{port}",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    fields = write_metadata((*head.items(), *metadata))
    host = host.strip("[]")
    named = None if tls is None else server_name or host
    try:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(fields, max_message_bytes),
            host,
            int(port),
            ssl=tls,
            server_hostname=named,
        )
    except (OSError, ValueError) as error:
        raise StreamEndedError(grpc.StatusCode.UNAVAILABLE, f"{address}: {error}") from error
    return connection.stream
