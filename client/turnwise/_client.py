"""The blocking client: one thread owns the Router, one thread reads each stream."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

import grpc

from turnwise._channels import Connection, Credentials, Tls
from turnwise._coalesce import coalesced
from turnwise._dialogue import Dialogue
from turnwise._discovery import Discovery
from turnwise._errors import ClientClosed, DeadlineExceeded, TurnwiseError, error_from_rpc
from turnwise._replies import Domain, Receipt, Reply
from turnwise._requests import Request, Revisions, checked_timeout, feedback_request
from turnwise._resend import FLUSH_S, Resender
from turnwise._routing import UNARY, Address, Attempt, Call, Counters, Router, Stream
from turnwise._state import DialogueState, Domains, Flow, describe, give
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1.dialogue_pb2_grpc import DialogueStub

T = TypeVar("T")
_GRACE_S = 1.0
_SLICE_S = 0.5


class Client:
    """Talks to one bot, at one actor or several. Thread-safe; use it as a context manager, or `close` it.

    Requests go to the least busy actor and are sent to another when one is away or silent. Facts that an
    actor could only spool are sent again in the background until the learner has them.

    Args:
        address: `"host:port"` of an actor; `"dns:///name:port"`, each record of which is an actor;
            `"learner://host:port"`, the learner whose actors they are; or a list, mixed at will. Names and
            learners are followed while the client runs: see docs/operations.md.
        credentials: A bearer token, or a function that gives one; it is asked for each new stream, in threads
            of the client, and must return at once. To other machines only over TLS.
        tls: True: the system's authorities. A path: those in this PEM file. Or `grpc.ChannelCredentials`.
            None: plain text.
        timeout: Seconds that a call may take, retries included, unless it says otherwise itself.

    Raises:
        InvalidRequest: An argument is wrong.

    Example:
        ```python
        with turnwise.Client("localhost:50051") as bot, bot.dialogue(user="ann") as talk:
            turn = talk.act(text="hello")
            print(turn.say)
            turn.reward(+1)
            talk.end(outcome="success")
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
        self._engine = _Engine(Connection.of(address, credentials, tls))
        self._revisions = Revisions()
        self._domains = Domains()
        # A client that is dropped, or open when the program ends, stops its threads without a flush.
        self._finalizer = weakref.finalize(self, self._engine.stop)

    def dialogue(self, id: str | None = None, user: str = "", mode: str = "teach") -> Dialogue:
        """A new dialogue; nothing is sent before it is entered or acts.

        Args:
            id: Its name, at most 128 bytes; None: a random one.
            user: Who talks, or teaches: the teacher of its feedback.
            mode: `teach` explores and learns; `serve` explores within its budget and learns; `shadow`
                logs while the application acts itself; `evaluate` is greedy and never learned from.

        Raises:
            InvalidRequest: An argument is wrong.
        """
        state = DialogueState.new(self._revisions, self._domains, id, user, mode)
        return Dialogue(self._run, state, [])

    def resume(self, token: str) -> Dialogue:
        """The dialogue that `dialogue.token` was taken from, at that point; sends nothing.

        Raises:
            TokenRejected: This is no token, or only a part of one.
        """
        return Dialogue(self._run, DialogueState.resumed(self._revisions, self._domains, token), [])

    def domain(self, *, timeout: float | None = None) -> Domain:
        """What the bot can see and do."""
        return self._run(describe(self._domains), timeout)

    def feedback(
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
        """Gives feedback on a decision of any age, without its dialogue at hand.

        Exactly one of `reward`, `correction` and `retract`, or a comment alone.

        Args:
            dialogue_id: `turn.dialogue_id`.
            decision_id: `turn.decision_id`; None: the dialogue as a whole.
            reward: In the units of the domain's `rewards.range`.
            correction: Id of the action that would have been right.
            retract: True withdraws this teacher's reward and correction.
            comment: For people; goes with any of them.
            teacher: Who says so, where the credentials allow to speak for others; empty: the dialogue's
                user.
            timeout: Seconds; None: the client's.
        """
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
        return self._run(give(request), timeout)

    @property
    def counters(self) -> Counters:
        """What this client has sent, sent again, and still has to settle."""
        return self._engine.counters()

    def close(self) -> None:
        """Sends what is only spooled once more, for at most two seconds, and frees everything.

        Calls in other threads end with ClientClosed. May be called again.
        """
        if self._finalizer.alive:
            try:
                self._engine.flush(FLUSH_S)
            finally:
                self._finalizer()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T], timeout: float | None) -> T:
        """Runs a flow; its requests share one deadline."""
        seconds = self._timeout_s if timeout is None else checked_timeout(timeout)
        deadline = time.monotonic() + seconds
        try:
            request = next(flow)
            while True:
                try:
                    reply = self._engine.request(request, deadline)
                except TurnwiseError as error:
                    request = flow.throw(error)
                else:
                    request = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result


class _Engine:
    """The threads behind a client. Holds no reference to it, so that a dropped client ends them."""

    def __init__(self, connection: Connection) -> None:
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wire = _ThreadWire(connection, self._inbox.put)
        self._router = Router(connection.targets, self._wire, time.monotonic)
        self._wire.router = self._router
        self._discovery = Discovery(connection, self._router, time.monotonic, self._inbox.put)
        self._resender = Resender(self._router, time.monotonic)
        self._stopping = False
        # Re-entrant: the finalizer of a dropped client may run in a thread that is posting.
        self._gate = threading.RLock()
        self._thread = threading.Thread(target=self._work, name="turnwise-client", daemon=True)
        self._thread.start()
        self._discovery.start()

    def counters(self) -> Counters:
        """A copy."""
        return Counters(**vars(self._router.counters))

    def request(self, request: Request, deadline: float) -> Reply:
        """Sends one request and waits for its outcome."""
        outcome: list[Reply | TurnwiseError] = []
        there = threading.Event()

        def done(result: Reply | TurnwiseError) -> None:
            outcome.append(result)
            there.set()

        call = Call(request, deadline, done)
        self._post(partial(self._router.submit, call))
        try:
            # In slices: a signal that another thread received reaches this one only when it wakes.
            while not there.wait(_SLICE_S) and time.monotonic() < deadline + _GRACE_S:
                pass
        except BaseException:  # Ctrl-C, most likely
            self._post(partial(self._router.cancel, call))
            raise
        if not outcome:
            raise DeadlineExceeded("no answer in time; this machine seems to be overloaded")
        if isinstance(outcome[0], TurnwiseError):
            raise outcome[0]
        return outcome[0]

    def flush(self, timeout_s: float) -> None:
        """Sends spooled facts once more."""
        done = threading.Event()
        self._post(partial(self._resender.flush, timeout_s, done.set))
        done.wait(timeout_s + _GRACE_S)

    def stop(self) -> None:
        """Ends all threads."""
        with self._gate:
            self._stopping = True
            self._inbox.put(self._router.tick)  # wakes the thread
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _post(self, action: Callable[[], None]) -> None:
        """Has the engine's thread do something; what is taken in before `stop` is always done."""
        with self._gate:
            if self._stopping:
                raise ClientClosed("this client is closed")
            self._inbox.put(action)

    def _work(self) -> None:
        try:
            while not self._stopping:
                timer = self._router.next_timer()
                wait_s = None if timer is None else max(0.0, timer - time.monotonic())
                try:
                    action = self._inbox.get(timeout=wait_s)
                except Empty:
                    action = self._router.tick
                action()
                self._router.tick()
        finally:
            with self._gate:
                self._stopping = True
            self._discovery.stop()
            self._router.close()
            while not self._inbox.empty():
                self._inbox.get()()
            self._wire.close()


class _ThreadWire:
    """Sends for a Router; all methods run in the engine's thread, all events go to its inbox."""

    router: Router

    def __init__(self, connection: Connection, post: Callable[[Callable[[], None]], None]) -> None:
        self._connection = connection
        self._post = post
        self._channels: dict[Address, tuple[grpc.Channel, DialogueStub]] = {}
        self._outboxes: dict[Stream, SimpleQueue[pb.ConverseRequest | None]] = {}
        self._readers: dict[Stream, threading.Thread] = {}

    def open(self, stream: Stream) -> None:
        """Opens a stream and starts its reader."""
        outbox: SimpleQueue[pb.ConverseRequest | None] = SimpleQueue()
        self._outboxes[stream] = outbox
        try:
            metadata = self._connection.metadata()
        except TurnwiseError as error:
            self._post(partial(self._closed, stream, error))
            return
        # gRPC takes what is sent from this iterator, in a thread of its own, until it sees None.
        rpc = self._stub(stream.address).Converse(_messages(outbox), metadata=metadata)
        reader = threading.Thread(target=self._read, args=(stream, rpc), name="turnwise-stream", daemon=True)
        self._readers[stream] = reader
        reader.start()

    def send(self, stream: Stream, message: pb.ConverseRequest) -> None:
        """Queues a message; the stream's end says if it could not be sent."""
        if stream in self._outboxes:
            self._outboxes[stream].put(message)

    def finish(self, stream: Stream) -> None:
        """Half-closes the stream."""
        if stream in self._outboxes:
            self._outboxes[stream].put(None)

    def reset(self, stream: Stream) -> None:
        """Closes the connection that the stream uses."""
        self.release(stream.address)

    def call(self, attempt: Attempt, timeout_s: float) -> None:
        """Makes a unary call."""
        method = UNARY[type(attempt.call.request)]
        try:
            metadata = self._connection.metadata()
        except TurnwiseError as error:
            self._post(partial(self.router.failed, attempt, error))
            return
        future = getattr(self._stub(attempt.address), method).future(
            attempt.call.request, timeout=max(0.001, timeout_s), metadata=metadata
        )
        future.add_done_callback(partial(self._called, attempt))

    def release(self, address: Address) -> None:
        """Closes the connection to an actor that is gone."""
        if address in self._channels:
            self._channels.pop(address)[0].close()

    def close(self) -> None:
        """Cancels everything and waits for the readers."""
        for channel, _ in self._channels.values():
            channel.close()
        for outbox in self._outboxes.values():
            outbox.put(None)
        for reader in self._readers.values():
            reader.join(_GRACE_S)

    def _stub(self, address: Address) -> DialogueStub:
        if address not in self._channels:
            channel = self._connection.channel(address.target)
            self._channels[address] = channel, DialogueStub(channel)
        return self._channels[address][1]

    def _read(self, stream: Stream, rpc: Any) -> None:
        error: TurnwiseError | None = None
        try:
            for reply in rpc:
                self._post(partial(self.router.received, stream, reply))
        except grpc.RpcError as broken:
            error = error_from_rpc(broken)
        self._post(partial(self._closed, stream, error))

    def _closed(self, stream: Stream, error: TurnwiseError | None) -> None:
        self.finish(stream)  # ends gRPC's sending thread
        self._outboxes.pop(stream, None)
        self._readers.pop(stream, None)
        self.router.broke(stream, error)

    def _called(self, attempt: Attempt, future: Any) -> None:
        if future.code() is grpc.StatusCode.OK:
            self._post(partial(self.router.answered, attempt, future.result()))
        else:
            self._post(partial(self.router.failed, attempt, error_from_rpc(future)))


def _messages(outbox: "SimpleQueue[pb.ConverseRequest | None]") -> Iterator[pb.ConverseRequest]:
    """What is to be sent, until None."""
    ended = False
    while not ended:
        waiting = [outbox.get()]
        while not outbox.empty():
            waiting.append(outbox.get())
        ended = waiting[-1] is None
        yield from coalesced(request for request in waiting if request is not None)
