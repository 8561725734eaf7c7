"""What HTTP/2 of our own does, on `grpc.aio`, for where it was not built."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from turnwise_actor.http2.client import StreamEndedError

_MOST_UNSENT = 256
"""A client that lets more replies lie is read from no more."""


class AioStream:
    """See `http2.client.Stream`."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        self._call = call

    async def read(self) -> bytes:  # noqa: D102
        with _ending():
            message = await self._call.read()
        if not isinstance(message, bytes):
            raise StreamEndedError(grpc.StatusCode.UNAVAILABLE, "it ended the stream")
        return message

    async def write(self, message: Sequence[bytes]) -> None:  # noqa: D102
        with _ending():
            await self._call.write(b"".join(message))

    def cancel(self) -> None:  # noqa: D102
        self._call.cancel()


@contextmanager
def _ending() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise StreamEndedError(error.code(), error.details() or "") from error
    except asyncio.InvalidStateError as error:
        raise StreamEndedError(grpc.StatusCode.UNAVAILABLE, "the stream has ended") from error


class AioWire:
    """See `conversation.Wire`: a task that reads and one that writes. Ended by `close`."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context
        self._outbox: deque[bytes] = deque()
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._writing = asyncio.create_task(self._write())

    def listen(self, take: Callable[[list[bytes]], None]) -> asyncio.Future[None]:  # noqa: D102
        self._reading = asyncio.create_task(self._read(take))
        self._writing.add_done_callback(lambda writing: self.stop_listening())
        return self._reading

    def stop_listening(self) -> None:  # noqa: D102
        if self._reading is not None:
            self._reading.cancel()

    def send(self, replies: Sequence[bytes | list[bytes]]) -> None:  # noqa: D102
        if replies:
            self._outbox += (each if isinstance(each, bytes) else b"".join(each) for each in replies)
            self._emptied.clear()
            self._filled.set()

    async def sent(self) -> None:  # noqa: D102
        emptied = asyncio.create_task(self._emptied.wait())
        await asyncio.wait({emptied, self._writing}, return_when=asyncio.FIRST_COMPLETED)
        emptied.cancel()

    async def close(self) -> None:
        """Ends its tasks."""
        tasks = [self._writing, *([self._reading] if self._reading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, take: Callable[[list[bytes]], None]) -> None:
        while isinstance(message := await self._context.read(), bytes):
            take([message])
            if len(self._outbox) > _MOST_UNSENT:
                await self._emptied.wait()

    async def _write(self) -> None:
        while True:
            if not self._outbox:
                self._emptied.set()
                self._filled.clear()
                await self._filled.wait()
            await self._context.write(self._outbox.popleft())
