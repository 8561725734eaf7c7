"""Sends spooled facts again until the learner has them. Pure, like the Router that it uses.

A receipt SPOOLED means: safe on one actor's disk, not yet in the learner's journal. Each such request is
kept, at most `max_kept`, and sent again, oldest first and one at a time, with a pause that doubles while
the learner is away. When the queue is full the newcomer is not kept, and counted: the actor whose disk
holds it sends it on as well.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from turnwise._errors import (
    ActorUnavailable,
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    Overloaded,
    TurnwiseError,
)
from turnwise._replies import Reply
from turnwise._requests import Request
from turnwise._routing import Call, Router
from turnwise.v1 import dialogue_pb2 as pb

_log = logging.getLogger("turnwise")
FLUSH_S = 2.0
"""Seconds that closing a client may spend on a last re-send."""
_PASSING = (ActorUnavailable, Cancelled, ClientClosed, DeadlineExceeded, Overloaded)


@dataclass(frozen=True)
class ResendConfig:
    """How long and how often spooled facts are sent again."""

    max_kept: int = 10_000
    """Requests kept; higher: more memory while the learner is away."""
    first_pause_s: float = 1.0
    """Pause before the first re-send; doubles while the learner is away."""
    max_pause_s: float = 30.0
    """Bound on the pause; higher: less traffic, later settling."""
    timeout_s: float = 10.0
    """Deadline of one re-send."""


class Resender:
    """Keeps the requests that were only spooled, and sends them until they are in the journal."""

    def __init__(
        self, router: Router, clock: Callable[[], float], config: ResendConfig | None = None
    ) -> None:
        self._router = router
        self._clock = clock
        self._config = config or ResendConfig()
        self._kept: dict[int, Request] = {}  # oldest first
        self._numbers = count()
        self._own: set[Call] = set()
        self._pause_s = self._config.first_pause_s
        self._armed = False
        self._flushing = False
        router.on_reply = self._watch

    def flush(self, timeout_s: float, done: Callable[[], None]) -> None:
        """Sends everything kept once more, at once; calls `done` when all are answered or time is up.

        The last act: nothing is kept any more afterwards.
        """
        self._flushing = True
        unanswered = len(self._kept)

        def one_less() -> None:
            nonlocal unanswered
            unanswered -= 1
            if unanswered <= 0:
                self._router.counters.given_up += len(self._kept)
                done()

        if not unanswered:
            done()
        deadline = self._clock() + timeout_s
        for number in list(self._kept):
            self._send(number, deadline, one_less)

    def _watch(self, call: Call, reply: Reply) -> None:
        if not isinstance(reply, pb.Receipt) or reply.settled != pb.Receipt.SPOOLED or call in self._own:
            return
        if len(self._kept) >= self._config.max_kept or self._flushing:
            self._router.counters.given_up += 1
            return
        self._kept[next(self._numbers)] = call.request
        self._router.counters.unsettled = len(self._kept)
        self._arm(self._pause_s)

    def _arm(self, pause_s: float) -> None:
        if self._kept and not self._armed and not self._flushing:
            self._armed = True
            self._router.later(pause_s, self._send_oldest)

    def _send_oldest(self) -> None:
        self._armed = False
        if self._kept and not self._flushing:
            self._armed = True
            self._send(next(iter(self._kept)), self._clock() + self._config.timeout_s, self._go_on)

    def _go_on(self) -> None:
        """After one re-send: the next at once if it settled, after a pause if not."""
        self._armed = False
        self._arm(self._pause_s if self._pause_s > self._config.first_pause_s else 0.0)

    def _send(self, number: int, deadline: float, then: Callable[[], None]) -> None:
        def done(outcome: Reply | TurnwiseError) -> None:
            self._own.discard(call)
            self._judge(number, outcome)
            then()

        call = Call(self._kept[number], deadline, done)
        self._own.add(call)
        self._router.submit(call)

    def _judge(self, number: int, outcome: Reply | TurnwiseError) -> None:
        """Settled, refused for good, or to be sent once more."""
        counters = self._router.counters
        if isinstance(outcome, pb.Receipt) and outcome.settled == pb.Receipt.LEARNER:
            self._pause_s = self._config.first_pause_s
            counters.resent += self._kept.pop(number, None) is not None
        elif isinstance(outcome, TurnwiseError) and not isinstance(outcome, _PASSING):
            _log.warning("a spooled fact was refused when sent again, and is given up: %s", outcome)
            counters.given_up += self._kept.pop(number, None) is not None
        else:
            self._pause_s = min(self._config.max_pause_s, 2 * self._pause_s)
        counters.unsettled = len(self._kept)
