"""Decides which actor gets a request, when it is sent again, and when it has failed.

Pure: no I/O, no threads, no sleeping. The two clients feed it what happened and the time, and it tells
their `Wire` what to send; both therefore behave alike, and tests drive it with a clock of their own.
One thread, or one event loop, owns a Router.

The life of a call: it is *placed* at the actor with the fewest requests in flight (an *attempt*). Where
no actor can take it now, it waits. An actor that is unavailable is left alone for a while and the call is
placed at another at once; an actor silent for `hedge_after_s` keeps its attempt, and the call is placed
at a second one as well. The first answer wins, an error that would not change by asking again included.
What is sent again keeps its request_id, so that nothing is ever done twice.

The actors may change at any time: a new one is used at once; one that goes gets no more calls, finishes
those that it has, and is then let go of.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType
from typing import Any, Protocol

from turnwise._errors import (
    AccessDenied,
    ActorUnavailable,
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    NotSupported,
    TurnwiseError,
    UnexpectedReply,
    error_from_status,
)
from turnwise._replies import Reply
from turnwise._requests import Request
from turnwise.v1 import dialogue_pb2 as pb


@dataclass(frozen=True)
class RoutingConfig:
    """How patient the client is with its actors."""

    hedge_after_s: float = 0.3
    """Silence after which a request goes to a second actor too; higher: fewer double sends, later rescue."""
    max_in_flight: int = 256
    """Requests in flight at one address, the server's bound for a stream; more of them wait here."""
    first_backoff_s: float = 0.05
    """Time an unavailable actor is left alone; doubles at each failure in a row."""
    max_backoff_s: float = 1.0
    """Bound on that time; higher: less load on an actor that starts, later return to it."""
    avoid_s: float = 5.0
    """Time in which a silent or draining actor is asked only if no other can be."""
    stall_s: float = 5.0
    """Silence of a whole stream, with requests in flight, after which it is given up and reconnected."""
    max_breaks: int = 3
    """Streams, broken by anything but unavailability, that one call may see before it fails: the call
    may be what breaks them."""


@dataclass
class Counters:
    """What the client has done since it was made; see `Client.counters`.

    Attributes:
        requests: Calls made by the caller, and background re-sends.
        retries: Sent again after a failure.
        hedges: Sent to a second actor after 300 ms of silence.
        streams: Streams opened.
        resent: Spooled facts that were sent again and are now in the learner's journal.
        unsettled: Spooled facts that wait to be sent again.
        given_up: Spooled facts that are no longer sent again, because the queue was full, an actor refused
            them, or the client was closed first. They are safe on an actor's disk, which sends them on.
    """

    requests: int = 0
    retries: int = 0
    hedges: int = 0
    streams: int = 0
    resent: int = 0
    unsettled: int = 0
    given_up: int = 0


@dataclass(eq=False)
class Address:
    """One actor, as this client knows it."""

    target: str
    stream: "Stream | None" = None
    in_flight: int = 0
    unary: bool = False  # it has answered UNIMPLEMENTED to Converse
    failures: int = 0
    retry_at: float = 0.0
    error: TurnwiseError | None = None  # why it is left alone until then
    avoid_until: float = 0.0


@dataclass(eq=False)
class Stream:
    """One Converse stream. Lives until it breaks, drains, or the client is closed."""

    address: Address
    heard_at: float
    answered: bool = False
    draining: bool = False
    attempts: "dict[int, Attempt]" = field(default_factory=dict)


@dataclass(eq=False)
class Attempt:
    """One sending of a call. Counts as in flight until answered, broken, or the call's deadline."""

    id: int
    call: "Call"
    address: Address
    stream: Stream | None
    sent_at: float


@dataclass(eq=False)
class Call:
    """One request of the caller, until `done` is called, once, with the reply or the error."""

    request: Request
    deadline: float
    done: Callable[[Reply | TurnwiseError], None]
    attempts: list[Attempt] = field(default_factory=list)
    finished: bool = False
    hedged: bool = False
    sends: int = 0
    breaks: int = 0
    refused_by: list[Address] = field(default_factory=list)  # who could not keep what it says, in order
    error: TurnwiseError | None = None


UNARY: Mapping[type[Any], str] = MappingProxyType(
    {
        pb.StartDialogueRequest: "StartDialogue",
        pb.ActRequest: "Act",
        pb.FeedbackRequest: "GiveFeedback",
        pb.EndRequest: "EndDialogue",
        pb.DescribeDomainRequest: "DescribeDomain",
    }
)
"""The unary call of each request; Converse carries all but the last."""


class Wire(Protocol):
    """What a client does for its Router. No method blocks, or calls the Router back at once."""

    def open(self, stream: Stream) -> None:
        """Opens a stream; its end comes back as `broke`."""

    def send(self, stream: Stream, message: pb.ConverseRequest) -> None:
        """Sends on an open stream."""

    def finish(self, stream: Stream) -> None:
        """Says that nothing more will be sent on a stream; answers may still come."""

    def reset(self, stream: Stream) -> None:
        """Gives up a stream together with the connection of its address."""

    def call(self, attempt: Attempt, timeout_s: float) -> None:
        """Makes a unary call; its end comes back as `answered` or `failed`."""

    def release(self, address: Address) -> None:
        """Closes the connection of an address on which nothing goes on, and never will again."""


class Router:
    """Places calls at actors; see the module's docstring.

    Args:
        targets: Addresses of the actors, as far as they are known yet.
        wire: Does the sending.
        clock: Monotonic seconds.

    Attributes:
        on_reply: Called with each reply to a call that waits for it.
        on_trouble: Called when an actor was found unavailable.
    """

    def __init__(
        self,
        targets: Sequence[str],
        wire: Wire,
        clock: Callable[[], float],
        config: RoutingConfig | None = None,
    ) -> None:
        self.counters = Counters()
        self.on_reply: Callable[[Call, Reply], None] = lambda call, reply: None
        self.on_trouble: Callable[[], None] = lambda: None
        self._config = config or RoutingConfig()
        self._wire = wire
        self._clock = clock
        self._addresses = [Address(target) for target in targets]
        self._leaving: set[Address] = set()  # no longer one of the actors; they finish what they have
        self._why_nobody: TurnwiseError = ActorUnavailable("no actor is known")
        self._turn = 0
        self._ids = count(1)
        self._waiting: deque[Call] = deque()
        self._calls: set[Call] = set()
        self._streams: set[Stream] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._closed = False

    # ---- what the caller wants

    def submit(self, call: Call) -> None:
        """Takes a call; `call.done` will be called once."""
        if self._closed:
            call.finished = True
            call.done(ClientClosed("this client is closed"))
            return
        self.counters.requests += 1
        self._calls.add(call)
        self._place(call)
        self._check_later(call)

    def cancel(self, call: Call) -> None:
        """The caller no longer waits; what was sent may still be carried out."""
        self._finish(call, Cancelled("the caller stopped waiting"))

    def set_addresses(self, targets: Iterable[str]) -> None:
        """From now on these are the actors; those that stay keep their streams."""
        before = {address.target: address for address in self._addresses}
        self._addresses = [
            before.pop(target) if target in before else Address(target) for target in dict.fromkeys(targets)
        ]
        for address in before.values():
            self._leaving.add(address)
            if address.stream is not None:
                self._retire(address.stream)
            self._let_go(address)
        self._place_waiting()

    def nobody_because(self, error: TurnwiseError) -> None:
        """Why no actor is known, for the calls that find none.

        They wait until their deadline if it is ActorUnavailable, and fail at once with anything else.
        """
        self._why_nobody = error
        self._place_waiting()

    def close(self) -> None:
        """Fails all calls with ClientClosed and takes no more."""
        self._closed = True
        for call in list(self._calls):
            self._finish(call, ClientClosed("the client was closed during the call"))
        self._waiting.clear()
        self._timers.clear()

    # ---- what happened

    def received(self, stream: Stream, message: pb.ConverseReply) -> None:
        """A message came on a stream."""
        stream.heard_at = self._clock()
        self._replied(stream, message)
        for reply in message.also:
            self._replied(stream, reply)

    def _replied(self, stream: Stream, reply: pb.ConverseReply) -> None:
        kind = reply.WhichOneof("reply")
        if kind == "draining":
            self._drain(stream)
            return
        stream.answered = True
        attempt = stream.attempts.get(reply.correlation_id)
        if attempt is None:
            return  # came after the deadline
        if kind == "status":
            self.failed(attempt, error_from_status(reply.status))
        elif kind == "turn":
            self.answered(attempt, reply.turn)
        elif kind == "receipt":
            self.answered(attempt, reply.receipt)
        elif kind == "started":
            self.answered(attempt, reply.started)
        else:
            self.failed(attempt, UnexpectedReply("the actor's reply holds nothing that this SDK knows"))

    def answered(self, attempt: Attempt, reply: Reply) -> None:
        """An attempt got its reply."""
        address = attempt.address
        address.failures, address.retry_at = 0, 0.0
        self._settle_down(attempt)
        self._detach(attempt)
        if not attempt.call.finished:
            self.on_reply(attempt.call, reply)
        self._finish(attempt.call, reply)
        self._place_waiting()

    def failed(self, attempt: Attempt, error: TurnwiseError) -> None:
        """An attempt got an error, on its own: its stream, if any, goes on."""
        self._settle_down(attempt)
        self._detach(attempt)
        if isinstance(error, ActorUnavailable) and error.reason == "NOT_RECORDED":
            self._refused(attempt.call, attempt.address, error)
        elif isinstance(error, ActorUnavailable):
            self._back_off(attempt.address, error)
            if error.reason == "DRAINING":
                attempt.address.avoid_until = self._clock() + self._config.avoid_s
            self._try_again(attempt.call, error)
        elif attempt.stream is None and isinstance(error, Cancelled):
            self._try_again(attempt.call, error, suspicious=True)
        else:
            self._finish(attempt.call, error)
        self._place_waiting()

    def broke(self, stream: Stream, error: TurnwiseError | None) -> None:
        """A stream has ended; None: in good order. Its calls are placed anew."""
        if stream not in self._streams:
            return  # given up before
        address = stream.address
        self._forget(stream)
        attempts = list(stream.attempts.values())
        for attempt in attempts:
            self._detach(attempt)
        if isinstance(error, NotSupported) and not stream.answered:
            address.unary = True
            error = None
        else:
            if error is None and attempts:
                error = ActorUnavailable(f"{address.target} closed the stream with requests in flight")
            if error is not None and (attempts or not stream.draining):
                self._back_off(address, error)
        for attempt in attempts:
            if isinstance(error, AccessDenied) and not stream.answered:
                self._finish(attempt.call, error)
            else:
                suspicious = error is not None and not isinstance(error, ActorUnavailable)
                self._try_again(attempt.call, error, suspicious=suspicious)
        self._let_go(address)
        self._place_waiting()

    # ---- time

    def next_timer(self) -> float | None:
        """When `tick` is to be called; None: when something was fed in."""
        return self._timers[0][0] if self._timers else None

    def tick(self) -> None:
        """Does what is due."""
        while self._timers and self._timers[0][0] <= self._clock():
            heapq.heappop(self._timers)[2]()

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Calls `action` from `tick` once the time has come; never, once closed."""
        if self._closed:
            return
        heapq.heappush(self._timers, (self._clock() + delay_s, next(self._ids), action))

    # ---- how

    def _place(self, call: Call) -> None:
        if not self._placed(call):
            self._waiting.append(call)

    def _placed(self, call: Call) -> bool:
        """Sends the call, or fails it where no actor will ever be known; False: it has to wait."""
        address = self._choose(call)
        if address is not None:
            self._send(call, address)
        elif not self._addresses and not isinstance(self._why_nobody, ActorUnavailable):
            self._finish(call, self._why_nobody)
        else:
            return False
        return True

    def _choose(self, call: Call, *, trusted: bool = False) -> Address | None:
        """The least loaded actor that can take the call now; ties rotate."""
        now = self._clock()
        self._turn += 1
        asked = {attempt.address for attempt in call.attempts}
        best: tuple[int, bool, int, int] | None = None
        chosen: Address | None = None
        for index, address in enumerate(self._addresses):
            if address in asked or address.in_flight >= self._config.max_in_flight:
                continue
            if address.retry_at > now and (call.sends or address.retry_at < call.deadline):
                continue  # but a call that would expire until then tries once
            avoided = address.avoid_until > now
            if trusted and avoided:
                continue
            refused = call.refused_by.count(address)
            rank = (refused, avoided, address.in_flight, (index - self._turn) % len(self._addresses))
            if best is None or rank < best:
                best, chosen = rank, address
        return chosen

    def _send(self, call: Call, address: Address) -> None:
        now = self._clock()
        timeout_s = call.deadline - now
        direct = address.unary or isinstance(call.request, pb.DescribeDomainRequest)
        stream = None if direct else address.stream or self._open(address)
        attempt = Attempt(next(self._ids), call, address, stream, now)
        call.attempts.append(attempt)
        call.sends += 1
        address.in_flight += 1
        if stream is None:
            self._wire.call(attempt, timeout_s)
        else:
            stream.attempts[attempt.id] = attempt
            self._wire.send(stream, _converse(attempt.id, timeout_s, call.request))

    def _open(self, address: Address) -> Stream:
        stream = Stream(address, self._clock())
        address.stream = stream
        self._streams.add(stream)
        self.counters.streams += 1
        self._wire.open(stream)
        return stream

    def _drain(self, stream: Stream) -> None:
        """New requests go elsewhere where they can, to a new stream where not."""
        stream.address.avoid_until = self._clock() + self._config.avoid_s
        self._retire(stream)

    def _retire(self, stream: Stream) -> None:
        """The stream gets no more requests, and ends after the last answer."""
        stream.draining = True
        if stream.address.stream is stream:
            stream.address.stream = None
        if not stream.attempts:
            self._wire.finish(stream)

    def _detach(self, attempt: Attempt) -> None:
        """The attempt is no longer in flight."""
        if attempt not in attempt.call.attempts:
            return
        attempt.call.attempts.remove(attempt)
        attempt.address.in_flight -= 1
        stream = attempt.stream
        if stream is not None:
            stream.attempts.pop(attempt.id, None)
            if stream.draining and not stream.attempts and stream in self._streams:
                self._wire.finish(stream)
        self._let_go(attempt.address)

    def _let_go(self, address: Address) -> None:
        """Closes the connection of an actor that has gone, once nothing goes on there."""
        if address not in self._leaving or address.in_flight:
            return
        if not any(stream.address is address for stream in self._streams):
            self._leaving.discard(address)
            self._wire.release(address)

    def _settle_down(self, attempt: Attempt) -> None:
        """The actor has spoken: it is not silent. A draining one is avoided all the same."""
        if attempt.stream is None or not attempt.stream.draining:
            attempt.address.avoid_until = 0.0

    def _forget(self, stream: Stream) -> None:
        self._streams.discard(stream)
        if stream.address.stream is stream:
            stream.address.stream = None

    def _refused(self, call: Call, address: Address, error: TurnwiseError) -> None:
        """The actor has no room for what the call says, and answers others all the same: the call waits."""
        call.error = error
        rounds = call.refused_by.count(address)
        call.refused_by.append(address)
        if not rounds and any(other not in call.refused_by for other in self._addresses):
            self._try_again(call, error)
        else:
            self.later(self._delay(rounds), lambda: self._try_again(call, error))

    def _delay(self, failures: int) -> float:
        config = self._config
        delay = min(config.max_backoff_s, config.first_backoff_s * 2.0 ** min(failures, 16))
        return delay * random.uniform(0.8, 1.2)  # clients that lost the same actor come back one by one

    def _back_off(self, address: Address, error: TurnwiseError) -> None:
        delay = self._delay(address.failures)
        address.failures += 1
        address.error = error
        address.retry_at = self._clock() + delay
        self.later(delay, self._place_waiting)
        self.on_trouble()

    def _try_again(self, call: Call, error: TurnwiseError | None, *, suspicious: bool = False) -> None:
        if call.finished:
            return
        if error is not None:
            call.error = error
        call.breaks += suspicious
        if error is not None and call.breaks >= self._config.max_breaks:
            self._finish(call, error)
        elif not call.attempts:
            self.counters.retries += 1
            self._place(call)

    def _place_waiting(self) -> None:
        for _ in range(len(self._waiting)):
            call = self._waiting.popleft()
            if call.finished:
                continue
            if not self._placed(call):
                self._waiting.appendleft(call)
                return  # the others of the queue find no place either

    def _check_later(self, call: Call) -> None:
        remaining = max(0.0, call.deadline - self._clock())
        self.later(min(remaining, self._config.hedge_after_s), lambda: self._check(call))

    def _check(self, call: Call) -> None:
        """Every `hedge_after_s` of a call's life: has it expired, is somebody silent?"""
        now = self._clock()
        if call.finished and not call.attempts:
            return
        if now >= call.deadline:
            self._expire(call)
            return
        if not call.finished:
            self._hedge(call, now)
        self._reset_stalled(call, now)
        self._check_later(call)

    def _hedge(self, call: Call, now: float) -> None:
        silent = [a for a in call.attempts if now - a.sent_at >= self._config.hedge_after_s * 0.99]
        if not silent or self._addresses == [silent[0].address]:
            return
        for attempt in silent:
            attempt.address.avoid_until = now + self._config.avoid_s
        # A second actor is asked in any case, a third only if it is not silent itself: when all are slow,
        # asking all of them makes them slower.
        address = self._choose(call, trusted=call.hedged)
        if address is not None:
            call.hedged = True
            self.counters.hedges += 1
            self._send(call, address)

    def _reset_stalled(self, call: Call, now: float) -> None:
        """A machine that died sends no reset: its streams are given up after a long silence."""
        for attempt in list(call.attempts):
            stream = attempt.stream
            if stream is None or stream not in self._streams:
                continue
            if now - max(stream.heard_at, attempt.sent_at) >= self._config.stall_s:
                self._wire.reset(stream)
                self.broke(stream, ActorUnavailable(f"{stream.address.target} fell silent"))

    def _expire(self, call: Call) -> None:
        asked = [attempt.address for attempt in call.attempts]
        names = ", ".join(address.target for address in dict.fromkeys([*self._addresses, *asked]))
        refused = [address.error for address in self._addresses if address.retry_at > self._clock()]
        last = call.error or next((error for error in refused if error), None)
        if not self._addresses and not call.sends:
            last = self._why_nobody
        if isinstance(last, ActorUnavailable) and not call.attempts:
            self._finish(call, last)
        elif call.sends:
            self._finish(call, DeadlineExceeded(f"no answer in time from {names}; sent {call.sends} times"))
        else:
            full = f"{self._config.max_in_flight} requests in flight at each of {names}"
            self._finish(call, DeadlineExceeded(f"no room until the deadline: {full}"))
        for attempt in list(call.attempts):
            self._detach(attempt)
        self._place_waiting()

    def _finish(self, call: Call, outcome: Reply | TurnwiseError) -> None:
        """Attempts that lost stay in flight, and keep others away from a silent actor."""
        if call.finished:
            return
        call.finished = True
        self._calls.discard(call)
        # Calls that failed together get an error each: they are raised in different places.
        call.done(copy(outcome) if isinstance(outcome, TurnwiseError) else outcome)


def _converse(correlation_id: int, timeout_s: float, request: Request) -> pb.ConverseRequest:
    message = pb.ConverseRequest(correlation_id=correlation_id, timeout_ms=max(1, int(timeout_s * 1000)))
    if isinstance(request, pb.ActRequest):
        message.act.CopyFrom(request)
    elif isinstance(request, pb.FeedbackRequest):
        message.feedback.CopyFrom(request)
    elif isinstance(request, pb.StartDialogueRequest):
        message.start.CopyFrom(request)
    elif isinstance(request, pb.EndRequest):
        message.end.CopyFrom(request)
    else:
        raise TypeError(f"Converse carries no {type(request).__name__}")
    return message
