"""One Converse stream: requests answered side by side, replies in completion order.

The stream ends in three ways. The client ends its side: what is in flight is answered first. It reaches
its age, or the process drains: `draining` is sent, requests that were already on their way are still
answered, and once it is quiet the server ends its side. The connection breaks: everything in flight is
cancelled; facts already made go on to the learner all the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from turnwise.v1 import dialogue_pb2
from turnwise_actor.access.unreadable import UnreadableError
from turnwise_actor.config import StreamConfig
from turnwise_actor.errors import (
    BadRequestError,
    DeadlineError,
    InternalError,
    OverloadError,
    RequestError,
    Violation,
)

Answer = Callable[[dialogue_pb2.ConverseRequest], Awaitable[dialogue_pb2.ConverseReply]]

logger = logging.getLogger(__name__)


class Conversation:
    """Answers the requests of one stream until it ends."""

    def __init__(
        self,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[dialogue_pb2.ConverseReply], Awaitable[None]],
        answer: Answer,
        config: StreamConfig,
    ) -> None:
        self._read = read
        self._write = write
        self._answer = answer
        self._config = config
        # Bounded: a client that does not read its replies is not read from.
        self._replies: asyncio.Queue[dialogue_pb2.ConverseReply] = asyncio.Queue(2 * config.max_in_flight)
        self._in_flight: set[asyncio.Task[None]] = set()
        self._last_request_at = time.monotonic()

    async def run(self, life_s: float, draining: asyncio.Event) -> None:
        """Returns when the stream is to be ended by the server."""
        writing = asyncio.create_task(self._write_replies())
        reading = asyncio.create_task(self._read_requests())
        leaving = asyncio.create_task(draining.wait())
        try:
            await asyncio.wait(
                {reading, leaving, writing}, timeout=life_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not reading.done() and not writing.done():
                await self._replies.put(dialogue_pb2.ConverseReply(draining=dialogue_pb2.Draining()))
                await self._until_quiet(reading)
            await self._finish(writing)
        finally:
            tasks = [writing, reading, leaving, *self._in_flight]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_quiet(self, reading: asyncio.Task[None]) -> None:
        """Gives the client time to move, and what it has sent meanwhile time to arrive."""
        began_at = time.monotonic()
        while not reading.done() and time.monotonic() - began_at < self._config.move_s:
            quiet_s = time.monotonic() - max(self._last_request_at, began_at)
            if quiet_s >= self._config.quiet_s and not self._in_flight:
                break
            await asyncio.wait({reading}, timeout=self._config.quiet_s / 4)
        reading.cancel()

    async def _finish(self, writing: asyncio.Task[None]) -> None:
        if self._in_flight:
            await asyncio.wait(self._in_flight)
        flushed = asyncio.create_task(self._replies.join())
        await asyncio.wait({flushed, writing}, return_when=asyncio.FIRST_COMPLETED)
        flushed.cancel()

    async def _read_requests(self) -> None:
        while (request := await self._next_request()) is not None:
            if len(self._in_flight) >= self._config.max_in_flight:
                await self._replies.put(_failed(request, self._too_many()))
                continue
            task = asyncio.create_task(self._reply(request))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    async def _next_request(self) -> dialogue_pb2.ConverseRequest | None:
        """None: the client has ended its side. What cannot be read is answered at once, as nobody's."""
        while True:
            try:
                request = await self._read()
            except UnreadableError as error:
                await self._replies.put(dialogue_pb2.ConverseReply(status=error.to_status()))
                continue
            self._last_request_at = time.monotonic()
            return request if isinstance(request, dialogue_pb2.ConverseRequest) else None

    async def _reply(self, request: dialogue_pb2.ConverseRequest) -> None:
        try:
            reply = await self._answer_in_time(request)
        except RequestError as error:
            reply = _failed(request, error)
        except Exception:
            logger.exception("a request on a stream failed")
            reply = _failed(request, InternalError("a fault of the actor; its log tells more"))
        await self._replies.put(reply)

    async def _answer_in_time(self, request: dialogue_pb2.ConverseRequest) -> dialogue_pb2.ConverseReply:
        """As asyncio.wait_for does it, but without a second task for every request: that costs 50 us."""
        timeout_ms = request.timeout_ms or self._config.default_timeout_ms
        deadline = _Deadline(timeout_ms / 1000)
        try:
            return await self._answer(request)
        except asyncio.CancelledError:
            if not deadline.passed:
                raise
            raise DeadlineError(f"no answer within the request's {timeout_ms} ms") from None
        finally:
            deadline.timer.cancel()

    async def _write_replies(self) -> None:
        while True:
            reply = await self._replies.get()
            await self._write(reply)
            self._replies.task_done()

    def _too_many(self) -> OverloadError:
        return OverloadError(
            f"{self._config.max_in_flight} requests of this stream are in flight already; wait for replies",
            reason="TOO_MANY_IN_FLIGHT",
        )


class _Deadline:
    """Cancels the task that made it after a time, and tells whether it did."""

    def __init__(self, timeout_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.passed = False
        self.timer = asyncio.get_running_loop().call_later(timeout_s, self._expire)

    def _expire(self) -> None:
        self.passed = True
        self._task.cancel()


def unknown_request() -> BadRequestError:
    """For a request with none of its kinds set."""
    return BadRequestError([Violation("request", "none", "one of start, act, feedback, end")])


def _failed(request: dialogue_pb2.ConverseRequest, error: RequestError) -> dialogue_pb2.ConverseReply:
    return dialogue_pb2.ConverseReply(correlation_id=request.correlation_id, status=error.to_status())
