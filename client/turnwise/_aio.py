"""The asyncio client: as `Client`, awaited. All that decides is shared with it."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio

from turnwise._channels import Connection, Credentials, Tls
from turnwise._coalesce import coalesced
from turnwise._dialogue import AsyncDialogue
from turnwise._discovery import Discovery
from turnwise._errors import ActorUnavailable, Cancelled, ClientClosed, TurnwiseError, error_from_rpc
from turnwise._replies import Domain, Receipt, Reply
from turnwise._requests import Request, Revisions, checked_timeout, feedback_request
from turnwise._resend import FLUSH_S, Resender
from turnwise._routing import UNARY, Address, Attempt, Call, Counters, Router, Stream
from turnwise._state import DialogueState, Domains, Flow, describe, give
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1.dialogue_pb2_grpc import DialogueStub

T = TypeVar("T")
_PROVING_S = 0.25
_HALF_CLOSE_S = 0.2
_CANCELLED_S = 0.02
_WRITE_FAILED = "Internal error from Core"  # says grpc.aio for any stream that ends during a write


class AsyncClient:
    """As `Client`, awaited: for asyncio, in the one event loop that it is first used in.

    Example:
        ```python
        async with turnwise.AsyncClient("localhost:50051") as bot, bot.dialogue(user="ann") as talk:
            turn = await talk.act(text="hello")
            await turn.reward(+1)
            await talk.end(outcome="success")
        ```
    """

    def __init__(
        self,
        address: str | Sequence[str],
        credentials: Credentials = None,
        tls: Tls = None,
        *,
        timeout: float = 10.0,
    ) -> None:
        self._timeout_s = checked_timeout(timeout)
        self._engine = _LoopEngine(Connection.of(address, credentials, tls))
        self._revisions = Revisions()
        self._domains = Domains()

    def dialogue(self, id: str | None = None, user: str = "", mode: str = "teach") -> AsyncDialogue:
        """As `Client.dialogue`."""
        state = DialogueState.new(self._revisions, self._domains, id, user, mode)
        return AsyncDialogue(self._run, state, [])

    def resume(self, token: str) -> AsyncDialogue:
        """As `Client.resume`."""
        return AsyncDialogue(self._run, DialogueState.resumed(self._revisions, self._domains, token), [])

    async def domain(self, *, timeout: float | None = None) -> Domain:
        """As `Client.domain`."""
        return await self._run(describe(self._domains), timeout)

    async def feedback(
        self,
        dialogue_id: str,
        decision_id: str | None,
        *,
        reward: float | None = None,
        correction: str | None = None,
        retract: bool = False,
        comment: str = "",
        teacher: str = "",
        timeout: float | None = None,
    ) -> Receipt:
        """As `Client.feedback`."""
        request = feedback_request(
            self._revisions.next(),
            dialogue_id,
            decision_id or "",
            reward=reward,
            correction=correction,
            retract=retract,
            comment=comment,
            teacher=teacher,
        )
        return await self._run(give(request), timeout)

    @property
    def counters(self) -> Counters:
        """As `Client.counters`."""
        return self._engine.counters()

    async def close(self) -> None:
        """As `Client.close`."""
        await self._engine.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, flow: Flow[T], timeout: float | None) -> T:
        """Runs a flow; its requests share one deadline."""
        seconds = self._timeout_s if timeout is None else checked_timeout(timeout)
        deadline = time.monotonic() + seconds
        try:
            request = next(flow)
            while True:
                try:
                    reply = await self._engine.request(request, deadline)
                except TurnwiseError as error:
                    request = flow.throw(error)
                else:
                    request = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result


class _LoopEngine:
    """Runs a Router in the event loop: feeds it what happened, and calls its timers."""

    def __init__(self, connection: Connection) -> None:
        self._wire = _TaskWire(connection, self._feed)
        self._router = Router(connection.targets, self._wire, time.monotonic)
        self._wire.router = self._router
        self._discovery = Discovery(connection, self._router, time.monotonic, self._post)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resender = Resender(self._router, time.monotonic)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._closed = False

    def counters(self) -> Counters:
        """A copy."""
        return Counters(**vars(self._router.counters))

    async def request(self, request: Request, deadline: float) -> Reply:
        """Sends one request and waits for its outcome."""
        answer: asyncio.Future[Reply | TurnwiseError] = asyncio.get_running_loop().create_future()

        def done(result: Reply | TurnwiseError) -> None:
            if not answer.done():
                answer.set_result(result)

        if self._closed:
            raise ClientClosed("this client is closed")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._discovery.start()
        call = Call(request, deadline, done)
        self._feed(partial(self._router.submit, call))
        try:
            outcome = await answer
        except asyncio.CancelledError:
            self._feed(partial(self._router.cancel, call))
            raise
        if isinstance(outcome, TurnwiseError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Sends spooled facts once more, then ends all tasks."""
        if self._closed:
            return
        self._closed = True
        flushed = asyncio.Event()
        self._feed(partial(self._resender.flush, FLUSH_S, flushed.set))
        try:
            await flushed.wait()
        finally:
            self._discovery.stop()
            self._router.close()
            if self._timer is not None:
                self._timer.cancel()
            await self._wire.close()

    def _post(self, event: Callable[[], None]) -> None:
        """Has the event loop do something, from another thread; RuntimeError: the loop is closed."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._feed_if_open, event)

    def _feed_if_open(self, event: Callable[[], None]) -> None:
        if not self._closed:
            self._feed(event)

    def _feed(self, event: Callable[[], None]) -> None:
        event()
        self._router.tick()
        self._set_timer()

    def _set_timer(self) -> None:
        at = self._router.next_timer()
        if self._timer is not None:
            if at is not None and self._timer_at <= at:
                return  # wakes early, and sets itself anew
            self._timer.cancel()
            self._timer = None
        if at is not None:
            delay_s = max(0.0, at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)
            self._timer_at = at

    def _wake(self) -> None:
        self._timer = None
        self._feed(self._router.tick)


class _TaskWire:
    """Sends for a Router; a task reads each stream and one writes it."""

    router: Router

    def __init__(self, connection: Connection, feed: Callable[[Callable[[], None]], None]) -> None:
        self._connection = connection
        self._feed = feed
        self._channels: dict[Address, tuple[grpc.aio.Channel, Any]] = {}
        self._outboxes: dict[Stream, asyncio.Queue[pb.ConverseRequest | None]] = {}
        self._readers: dict[Stream, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def open(self, stream: Stream) -> None:
        """Opens a stream."""
        self._outboxes[stream] = asyncio.Queue()
        self._readers[stream] = self._spawn(self._converse(stream))

    def send(self, stream: Stream, message: pb.ConverseRequest) -> None:
        """Queues a message; the stream's end says if it could not be sent."""
        if stream in self._outboxes:
            self._outboxes[stream].put_nowait(message)

    def finish(self, stream: Stream) -> None:
        """Half-closes the stream."""
        if stream in self._outboxes:
            self._outboxes[stream].put_nowait(None)

    def reset(self, stream: Stream) -> None:
        """Closes the connection that the stream uses."""
        self.release(stream.address)

    def call(self, attempt: Attempt, timeout_s: float) -> None:
        """Makes a unary call."""
        self._spawn(self._unary(attempt, timeout_s))

    def release(self, address: Address) -> None:
        """Closes the connection to an actor that is gone."""
        if address in self._channels:
            self._spawn(self._channels.pop(address)[0].close(None))

    async def close(self) -> None:
        """Ends idle streams in good order, cancels the rest, and waits for all of it.

        What grpc.aio still has under way when its event loop is closed, it reports as errors in the next.
        """
        self._closing = True
        idle = [task for stream, task in self._readers.items() if not stream.attempts]
        for stream in list(self._readers):
            self.finish(stream)
        if idle:
            await asyncio.wait(idle, timeout=_HALF_CLOSE_S)
        rest = list(self._tasks)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for channel, _ in self._channels.values():
            await channel.close(None)
        if rest:
            await asyncio.sleep(_CANCELLED_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _stub(self, address: Address) -> Any:
        if address not in self._channels:
            tls, options = self._connection.tls, self._connection.options(address.target)
            if tls is None:
                channel = grpc.aio.insecure_channel(address.target, options)
            else:
                channel = grpc.aio.secure_channel(address.target, tls, options)
            self._channels[address] = channel, DialogueStub(channel)
        return self._channels[address][1]

    async def _converse(self, stream: Stream) -> None:
        error: TurnwiseError | None = None
        writer: asyncio.Task[None] | None = None
        try:
            rpc = self._stub(stream.address).Converse(metadata=self._connection.metadata())
            heard = asyncio.Event()
            writer = asyncio.ensure_future(_write(rpc, self._outboxes[stream], heard))
            async for reply in rpc:
                heard.set()
                self._feed(partial(self.router.received, stream, reply))
        except grpc.RpcError as broken:
            error = error_from_rpc(broken)
            if error.message == _WRITE_FAILED:
                error = ActorUnavailable(f"the stream to {stream.address.target} broke")
        except TurnwiseError as refused:
            error = refused
        except asyncio.CancelledError:
            if self._closing:
                raise
            error = Cancelled("the connection was given up")  # its channel was closed by `reset`
        finally:
            self._outboxes.pop(stream, None)
            self._readers.pop(stream, None)
            if writer is not None:
                writer.cancel()
        self._feed(partial(self.router.broke, stream, error))

    async def _unary(self, attempt: Attempt, timeout_s: float) -> None:
        method = UNARY[type(attempt.call.request)]
        try:
            reply = await getattr(self._stub(attempt.address), method)(
                attempt.call.request, timeout=max(0.001, timeout_s), metadata=self._connection.metadata()
            )
        except grpc.RpcError as broken:
            self._feed(partial(self.router.failed, attempt, error_from_rpc(broken)))
        except TurnwiseError as refused:
            self._feed(partial(self.router.failed, attempt, refused))
        except asyncio.CancelledError:
            if self._closing:
                raise
            given_up = Cancelled("the connection was given up")
            self._feed(partial(self.router.failed, attempt, given_up))
        else:
            self._feed(partial(self.router.answered, attempt, reply))


async def _write(rpc: Any, outbox: "asyncio.Queue[pb.ConverseRequest | None]", heard: asyncio.Event) -> None:
    try:
        ended = False
        while not ended:
            waiting = [await outbox.get()]
            while not outbox.empty():
                waiting.append(outbox.get_nowait())
            ended = waiting[-1] is None
            for message in coalesced(request for request in waiting if request is not None):
                await rpc.write(message)
                if not heard.is_set():
                    await _until_heard(heard)
        await rpc.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        return  # the stream has ended; its reader says how


async def _until_heard(heard: asyncio.Event) -> None:
    """After the first message: a write that meets a stream just refused hides what refused it.

    (Its status, UNIMPLEMENTED perhaps, is then replaced by grpc.aio's own INTERNAL.)
    """
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(heard.wait(), _PROVING_S)
    heard.set()
