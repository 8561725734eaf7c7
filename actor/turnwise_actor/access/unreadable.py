"""Bytes that are no message of the called method: INVALID_ARGUMENT, like anything else that is wrong.

gRPC itself answers them with UNKNOWN and logs a traceback each, with which anybody could fill a disk. On a
stream `context.read` raises UnreadableError and may be called again; a servicer that lets it pass ends the
stream with its status.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, cast

import grpc.aio
from google.protobuf.message import DecodeError

from turnwise_actor.access.handlers import Behaviour, Context, Read, Write, behaviour_of, drive, rebuilt
from turnwise_actor.errors import DETAILS_KEY, BadRequestError, Violation

logger = logging.getLogger(__name__)


class UnreadableError(BadRequestError):
    """A request that is no message."""

    def __init__(self, content: bytes, method: str) -> None:
        wanted = f"a message of the type that {method} takes"
        super().__init__([Violation("request", f"{len(content)} bytes that are none", wanted)])


class UnreadableRequests(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Answers them for every method of one server. Comes after a Guard, which asks first who calls.

    Replies that a servicer has serialized already go as they are.

    Args:
        readers: Of methods whose requests are not read by protobuf alone. They raise DecodeError, too.
    """

    def __init__(self, readers: Mapping[str, Read] | None = None) -> None:
        self._readers = readers or {}
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The method's handler, which is never asked about what cannot be read."""
        handler, method = await continuation(handler_call_details), handler_call_details.method
        if handler is None:
            return None
        if method not in self._handlers:
            around = _stream if handler.response_streaming else _call
            own = cast(Read, handler.request_deserializer)
            read = _reader(self._readers.get(method, own), method, handler.request_streaming)
            write = _writer(handler.response_serializer)
            self._handlers[method] = rebuilt(handler, around(behaviour_of(handler)), read, write)
        return self._handlers[method]


def _reader(deserialize: Read, method: str, raises: bool) -> Read:
    """Reads requests; what cannot be read is raised, or else stands in the request's place.

    Raised on a stream, which the behaviour reads by itself. A lone request is read before the behaviour is
    asked.
    """

    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError:
            error = UnreadableError(content, method)
        if raises:
            raise error
        return error

    return read


def _writer(serialize: Write) -> Write:
    """Writes replies; one that is serialized already goes as it is."""

    def write(reply: Any) -> bytes:
        return reply if isinstance(reply, bytes) else serialize(reply)

    return write


def _call(behaviour: Behaviour) -> Behaviour:
    async def call(request: Any, context: Context) -> Any:
        if isinstance(request, UnreadableError):
            await _refuse(context, request)
        return await behaviour(request, context)

    return call


def _stream(behaviour: Behaviour) -> Behaviour:
    async def stream(request: Any, context: Context) -> None:
        if isinstance(request, UnreadableError):
            await _refuse(context, request)
        try:
            await drive(behaviour(request, context), context)
        except UnreadableError as error:
            await _refuse(context, error)

    return stream


async def _refuse(context: Context, error: UnreadableError) -> NoReturn:
    logger.debug("refused %s: %s", context.peer(), error.message)
    details = (DETAILS_KEY, error.to_status().SerializeToString())
    await context.abort(error.code, error.message, (details,))
    raise AssertionError("abort raises")
