"""One Converse stream: requests answered side by side, replies in completion order.

The stream ends in three ways. The client ends its side: what is in flight is answered first. It reaches
its age, or the process drains: `draining` is sent, requests that were already on their way are still
answered, and once it is quiet the server ends its side. The connection breaks: everything in flight is
cancelled; facts already made go on to the learner all the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from google.protobuf.message import DecodeError

from turnwise.v1 import dialogue_pb2
from turnwise_actor.access.unreadable import UnreadableError
from turnwise_actor.config import StreamConfig
from turnwise_actor.errors import (
    BadRequestError,
    DeadlineError,
    OverloadError,
    RequestError,
    Violation,
    told,
)
from turnwise_actor.parts import joining
from turnwise_actor.requests import CONVERSE, PlainAct, read_converse
from turnwise_actor.turns import Outcome

Answering = Coroutine[Any, Any, bytes]
"""Of a ConverseReply, serialized."""
Acted = Callable[[Sequence[PlainAct], Sequence[Outcome]], None]
"""Takes what came of each."""
Act = Callable[[Sequence[PlainAct], Acted], None]
"""Begins to answer turns; `acted` is called for each of them within a few turns of the event loop."""
Done = Callable[[Outcome], None]
"""Takes a reply, why there is none, or what gives one that has to be awaited."""
Answer = Callable[[dialogue_pb2.ConverseRequest, Done], Answering | None]
"""Begins to answer a request. None: `done` is called within a few turns of the event loop."""
Request: TypeAlias = dialogue_pb2.ConverseRequest | PlainAct

MOST_BYTES = 1 << 20
"""Of a message with several replies."""
_DRAINING = dialogue_pb2.ConverseReply(draining=dialogue_pb2.Draining()).SerializeToString()


class Wire(Protocol):
    """What carries the messages of one stream."""

    def listen(self, take: Callable[[list[bytes]], None]) -> asyncio.Future[None]:
        """Gives messages to `take` as they come, while the client takes its replies.

        The future is done when the client has ended its side, or cannot be written to.
        """
        ...

    def stop_listening(self) -> None:
        """Gives it no more."""
        ...

    def send(self, replies: Sequence[bytes | list[bytes]]) -> None:
        """Sends messages, whole or in parts, in order, as soon as the client takes them."""
        ...

    async def sent(self) -> None:
        """Returns when the client has taken all of them, or cannot be written to."""
        ...


class Conversation:
    """Answers the requests of one stream until it ends."""

    def __init__(self, wire: Wire, act: Act, answer: Answer, config: StreamConfig) -> None:
        self._wire = wire
        self._act = act
        self._answer = answer
        self._config = config
        self._outbox: list[bytes] = []
        """Replies that go in one message with those that are ready in the same turn of the event loop."""
        self._coalesces = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._soon = 0
        """Requests that are answered without a task."""
        self._ended = False
        self._last_request_at = time.monotonic()

    async def run(self, life_s: float, draining: asyncio.Event) -> None:
        """Returns when the stream is to be ended by the server."""
        ended = self._wire.listen(self.take)
        leaving: asyncio.Future[Any] = asyncio.create_task(draining.wait())
        try:
            await asyncio.wait({ended, leaving}, timeout=life_s, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                self._send([_DRAINING])
                await self._until_quiet(ended)
            await self._finish()
        finally:
            self._ended = True
            self._wire.stop_listening()
            tasks = [leaving, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_quiet(self, ended: asyncio.Future[None]) -> None:
        """Gives the client time to move, and what it has sent meanwhile time to arrive."""
        began_at = time.monotonic()
        while not ended.done() and time.monotonic() - began_at < self._config.move_s:
            quiet_s = time.monotonic() - max(self._last_request_at, began_at)
            if quiet_s >= self._config.quiet_s and not self._in_flight():
                break
            await asyncio.wait({ended}, timeout=self._config.quiet_s / 4)
        self._wire.stop_listening()

    async def _finish(self) -> None:
        while self._in_flight() or self._outbox:
            # What is answered soon may turn out to need a task.
            await (asyncio.wait(self._tasks) if self._tasks else asyncio.sleep(0))
        sent = asyncio.create_task(self._wire.sent())
        # A client that does not read is not waited for.
        await asyncio.wait({sent}, timeout=self._config.move_s)
        sent.cancel()

    def _in_flight(self) -> int:
        return len(self._tasks) + self._soon

    def take(self, messages: Sequence[bytes]) -> None:
        """Begins to answer ConverseRequests, serialized; what cannot be read is answered as nobody's."""
        self._last_request_at = time.monotonic()
        acts: list[PlainAct] = []
        for content in messages:
            try:
                message = read_converse(content)
            except DecodeError:
                status = UnreadableError(content, CONVERSE).to_status()
                self._send([dialogue_pb2.ConverseReply(status=status).SerializeToString()])
                continue
            if isinstance(message, list):
                if len(message) == 1 or self._has_room(message[0], len(message) - 1):
                    acts += message
            elif message.also:
                self._take_all(message)
            else:
                self._take(message)
        if acts:
            self._take_acts(acts)

    def _take_acts(self, acts: Sequence[PlainAct]) -> None:
        room = max(0, self._config.max_in_flight - self._in_flight())
        if len(acts) > room:
            self._send([_failed(act, self._too_many()) for act in acts[room:]])
            acts = acts[:room]
        if acts:
            self._soon += len(acts)
            self._act(acts, self._acted)

    def _has_room(self, message: Request, further: int) -> bool:
        """Whether a message may bring so many further requests; if not, it is refused as a whole."""
        self._coalesces = True
        most = self._config.max_in_flight - 1
        if further > most:
            self._send([_failed(message, _wrong("also", f"{further} requests", f"at most {most}"))])
        return further <= most

    def _take_all(self, message: dialogue_pb2.ConverseRequest) -> None:
        if not self._has_room(message, len(message.also)):
            return
        self._take(message)
        for request in message.also:
            if request.also:
                self._send([_failed(request, _wrong("also.also", f"{len(request.also)} requests", "none"))])
            else:
                self._take(request)

    def _take(self, request: dialogue_pb2.ConverseRequest) -> None:
        if self._in_flight() >= self._config.max_in_flight:
            self._send([_failed(request, self._too_many())])
            return
        try:
            answering = self._answer(request, partial(self._done, request))
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            self._send([_failed(request, told(error))])
            return
        if answering is None:
            self._soon += 1
        else:
            self._await(request, answering)

    def _done(self, request: Request, outcome: Outcome) -> None:
        self._acted((request,), (outcome,))

    def _acted(self, requests: Sequence[Request], outcomes: Sequence[Outcome]) -> None:
        self._soon -= len(requests)
        replies = []
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, bytes):
                replies.append(outcome)
            elif isinstance(outcome, RequestError):
                replies.append(_failed(request, outcome))
            elif not self._ended:
                self._await(request, outcome())
        if replies:
            self._send(replies)

    def _await(self, request: Request, answering: Answering) -> None:
        task = asyncio.create_task(self._reply(request, answering))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, request: Request, answering: Awaitable[bytes]) -> None:
        try:
            reply = await self._answer_in_time(request, answering)
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            reply = _failed(request, told(error))
        self._send([reply])

    async def _answer_in_time(self, request: Request, answering: Awaitable[bytes]) -> bytes:
        """As asyncio.wait_for does it, but without a second task for every request: that costs 50 us."""
        timeout_ms = request.timeout_ms or self._config.default_timeout_ms
        deadline = _Deadline(timeout_ms / 1000)
        try:
            return await answering
        except asyncio.CancelledError:
            if not deadline.passed:
                raise
            raise DeadlineError(f"no answer within the request's {timeout_ms} ms") from None
        finally:
            deadline.timer.cancel()

    def _send(self, replies: list[bytes]) -> None:
        if not self._coalesces:
            self._wire.send(replies)
            return
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._send_together)
        self._outbox += replies

    def _send_together(self) -> None:
        replies, self._outbox = self._outbox, []
        self._wire.send(list(_together(replies)))

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


def _together(replies: Sequence[bytes]) -> Iterator[list[bytes]]:
    """As few messages as hold them, in parts, each of about MOST_BYTES at most."""
    begin = 0
    while begin < len(replies):
        end, size = begin + 1, len(replies[begin])
        while end < len(replies) and (size := size + len(replies[end])) <= MOST_BYTES:
            end += 1
        also = replies[begin + 1 : end]
        yield joining(replies[begin], dialogue_pb2.ConverseReply.ALSO_FIELD_NUMBER, also)
        begin = end


def unknown_request() -> BadRequestError:
    """A message of the stream that asks for nothing."""
    return _wrong("request", "none", "one of start, act, feedback, end")


def _wrong(field: str, got: str, wanted: str) -> BadRequestError:
    return BadRequestError([Violation(field, got, wanted)])


def _failed(request: Request, error: RequestError) -> bytes:
    number = request.correlation_id
    return dialogue_pb2.ConverseReply(correlation_id=number, status=error.to_status()).SerializeToString()
