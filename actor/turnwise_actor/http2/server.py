"""Listens, knows the methods, and drains: the part of `grpc.aio.Server` that actors and the learner need."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
import grpc.aio

from turnwise_actor.access.server_access import ServerAccess
from turnwise_actor.http2 import HTTP2
from turnwise_actor.http2.connection import Connection
from turnwise_actor.http2.metadata import Metadata

_BACKLOG = 1_024
_HANDSHAKE_S = 20.0
_LAST_CALLS_S = 0.1
"""After the end is announced, in which what clients had sent by then arrives."""
_ASKED_EVERY_S, _ASKED = 5, 3
"""How often, and how many times, the system asks whether a client is still there."""
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""A machine without IPv6 still has the other address of `localhost`."""


class Details(NamedTuple):
    """What interceptors are told of a call."""

    method: str
    invocation_metadata: Metadata


class Http2Server:
    """Takes servicers by `add_…Servicer_to_server`, as `grpc.aio.Server` does.

    Args:
        interceptors: Asked once a method, not once a call: what they make of a handler holds for all calls.
        max_message_bytes: Larger requests get RESOURCE_EXHAUSTED before they are read.
        silence_s: After so long without a word the system asks whether a client is still there: a dead
            machine sends no reset. After the same time one that takes nothing is given up.
    """

    def __init__(
        self,
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]],
        max_message_bytes: int,
        silence_s: int = 60,
    ) -> None:
        self.max_message_bytes = max_message_bytes
        self.connections: set[Connection] = set()
        self._interceptors = interceptors
        self._silence_s = silence_s
        self._generic: list[Any] = []
        self._handlers: dict[bytes, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._tls: ssl.SSLContext | None = None
        self._listening: list[asyncio.Server] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """Called by `add_…Servicer_to_server`."""
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Called with the same handlers; there is nothing that this server would do faster for it."""

    def bind(self, address: str, tls: ssl.SSLContext | None) -> int:
        """Takes an address, HOST:PORT; clients wait there until `start`. Returns the port. Raises OSError."""
        self._tls = tls
        self._sockets = _listening(address, self._silence_s)
        port: int = self._sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Takes clients from now on."""
        loop = asyncio.get_running_loop()
        limits: dict[str, Any] = {} if self._tls is None else {"ssl_handshake_timeout": _HANDSHAKE_S}
        for one in self._sockets:
            listening = await loop.create_server(
                lambda: Connection(self, loop), sock=one, ssl=self._tls, backlog=_BACKLOG, **limits
            )
            self._listening.append(listening)

    def handler_of(self, path: bytes, metadata: Metadata) -> Any:
        """What answers calls of a method; None: there is no such method."""
        if (handler := self._handlers.get(path)) is None:
            handler = _now(self._intercepted(Details(path.decode("latin-1"), metadata)))
            if handler is not None:
                self._handlers[path] = handler
        return handler

    async def _intercepted(self, details: Details) -> Any:
        async def found(details: Any) -> Any:
            handlers = (generic.service(details) for generic in self._generic)
            return next((handler for handler in handlers if handler is not None), None)

        continuation: Callable[[Any], Awaitable[Any]] = found
        for interceptor in reversed(self._interceptors):
            continuation = _Link(interceptor, continuation)
        return await continuation(details)

    def began(self, task: asyncio.Task[None]) -> None:
        """A call is being answered."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, grace_s: float) -> None:
        """Takes no more clients, lets calls go on for a while, then ends them."""
        for listening in self._listening:
            listening.close()
        for one in self._sockets:
            one.close()
        for connection in list(self.connections):
            connection.announce_end()
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + grace_s
        await asyncio.sleep(min(_LAST_CALLS_S, grace_s))
        while self._tasks and (left_s := ends_at - loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s)
        for connection in list(self.connections):
            for call in connection.calls:
                call.end(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
            connection.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._closed()

    async def _closed(self) -> None:
        """What is written goes out, to those who read it."""
        for _ in range(20):
            if not self.connections:
                return
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.abort()


Server = Http2Server | grpc.aio.Server


def new_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]],
    max_message_bytes: int,
    silence_s: int,
    options: Sequence[tuple[str, int]],
) -> Any:
    """A `Server`: of our own where HTTP/2 was built (see there), else `grpc.aio`'s with these options.

    Either takes servicers by `add_…Servicer_to_server`, which know `grpc.aio.Server` alone.
    """
    if HTTP2 is not None:
        return Http2Server(interceptors, max_message_bytes, silence_s)
    # One port a process: a second process on the same port must fail, not share it.
    own = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", max_message_bytes))
    return grpc.aio.server(interceptors=interceptors, options=(*own, *options))


def bind(server: Server, access: ServerAccess, address: str) -> int:
    """Takes an address, HOST:PORT, for those whom the access lets in; returns the port.

    Raises:
        AccessError: A certificate or key is wrong.
        OSError: The address cannot be listened on.
    """
    if isinstance(server, Http2Server):
        return server.bind(address, access.ssl_context())
    try:
        return access.bind(server, address)
    except RuntimeError as error:
        raise OSError(str(error)) from error


class _Link:
    """An interceptor and all that comes after it."""

    def __init__(self, interceptor: Any, after: Callable[[Any], Awaitable[Any]]) -> None:
        self._interceptor, self._after = interceptor, after

    def __call__(self, details: Any) -> Awaitable[Any]:
        answer: Awaitable[Any] = self._interceptor.intercept_service(self._after, details)
        return answer


def _now(finding: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        finding.send(None)
    except StopIteration as found:
        return found.value
    finding.close()
    raise TypeError("an interceptor waits for something; it is asked in passing here")


def _listening(address: str, silence_s: int) -> list[socket.socket]:
    """Sockets of all that the host's name stands for, on the same port. Raises OSError."""
    host, _, port = address.rpartition(":")
    places = socket.getaddrinfo(
        host.strip("[]") or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    unfit: OSError | None = None
    try:
        for family, _, _, _, place in dict.fromkeys(places):
            chosen = sockets[0].getsockname()[1] if sockets else place[1]
            try:
                one = _socket(family, (place[0], chosen, *place[2:]), silence_s, alone=len(places) == 1)
            except OSError as error:
                if error.errno not in _NO_SUCH_FAMILY:
                    raise
                unfit = error
            else:
                sockets.append(one)
    except OSError:
        for one in sockets:
            one.close()
        raise
    if not sockets:
        raise unfit or OSError(f"{address}: no such address")
    return sockets


def _socket(family: int, place: tuple[Any, ...], silence_s: int, alone: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", silence_s),
            ("TCP_KEEPINTVL", _ASKED_EVERY_S),
            ("TCP_KEEPCNT", _ASKED),
            ("TCP_USER_TIMEOUT", 1_000 * (silence_s + _ASKED_EVERY_S * _ASKED)),
        ):
            if (option := getattr(socket, name, None)) is not None:  # of Linux
                one.setsockopt(socket.IPPROTO_TCP, option, value)
        if family == socket.AF_INET6:
            # `[::]` is every address of the machine, those of IPv4 too, as with gRPC.
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not alone)
        one.bind(place)
        one.listen(_BACKLOG)  # until then somebody else may have the same address
    except OSError:
        one.close()
        raise
    return one
