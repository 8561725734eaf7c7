"""Facts on their way to the learner.

A fact that is added waits in memory, goes out with everything else that came in the same tick of the
event loop, and is settled by the learner's acknowledgement. While the learner is away, memory holds the
newest `max_pending_facts` and the spool what is older; both are sent again on the next stream, because
facts are keyed and a second delivery is harmless. A spool segment is deleted once the learner, in its
current epoch, has acknowledged all of it.

Each fact that this process is the first to take up gets the next number, so that `turnwise ledger` sees
what was acknowledged and is not in the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError

from turnwise.v1 import training_pb2
from turnwise_actor.access.client_access import Link
from turnwise_actor.config import UplinkConfig
from turnwise_actor.facts import PackedFact
from turnwise_actor.http2.client import Stream, StreamEndedError
from turnwise_actor.parts import joining
from turnwise_actor.spool import Spool, SpoolFullError
from turnwise_actor.wires import AioStream

_MAX_BATCH_BYTES = 1024 * 1024
_BATCH_FACTS = 512
"""That turns asked for together bring with them and make, at most about."""
_APPEND = f"/{training_pb2.DESCRIPTOR.services_by_name['Training'].full_name}/AppendFacts"

logger = logging.getLogger(__name__)


class FactRefusedError(Exception):
    """The learner says that a fact can never be journaled."""


class LearnerAwayError(Exception):
    """The learner's stream broke or fell silent; it is begun anew."""


@dataclass
class _Group:
    """Facts that somebody waits for: done, with the journal's cursor, once all are acknowledged."""

    missing: set[str]
    done: asyncio.Future[int | None]
    """None: that took too long."""


@dataclass
class _Batch:
    """What was sent and not yet acknowledged."""

    sequence: int
    keys: list[str]
    sent_at: float
    segment: Path | None = None


@dataclass
class _Replay:
    """A spool segment being sent again."""

    segment: Path
    facts: deque[PackedFact]
    unacknowledged: int = 0


@dataclass
class _Stream:
    """State of one stream to the learner; a new stream begins with a new one."""

    call: Stream | AioStream
    sequence: int = 0
    in_flight: deque[_Batch] = field(default_factory=deque)
    replay: _Replay | None = None
    replay_after: float = 0.0
    """Until then no segment is read: the disk has just failed to give one."""
    sent_at: float = 0.0
    report_due_at: float = 0.0


class _Recent:
    """The keys added last, in two generations: when the younger is full, the older is forgotten."""

    def __init__(self, most: int) -> None:
        self._full = most // 2
        self.younger: set[str] = set()
        self.older: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.younger or key in self.older

    def add(self, keys: Iterable[str]) -> None:
        self.younger.update(keys)
        if len(self.younger) >= self._full:
            self.older, self.younger = self.younger, set()

    def discard(self, key: str) -> None:
        self.younger.discard(key)
        self.older.discard(key)


class Uplink:
    """Sends facts on, remembers which are settled, and reports to the learner. Used from one event loop.

    `incarnation` is this process's, a number of 64 bits.
    """

    def __init__(
        self,
        link: Link,
        spool: Spool,
        config: UplinkConfig,
        report: Callable[[], training_pb2.ActorReport],
        incarnation: int,
    ) -> None:
        self._link = link
        self._spool = spool
        self._config = config
        self._report = report
        self._most_pending = 2 * config.max_pending_facts
        self._incarnation = incarnation
        self._sequence = 0
        self._journaled_through = 0
        self._pending: dict[str, PackedFact] = {}
        self._queue: deque[str] = deque()
        self._groups: dict[str, list[_Group]] = {}
        self._watched: dict[str, list[asyncio.Future[int | None]]] = {}
        """By key: those who wait for that fact alone."""
        self._settled = _Recent(config.max_settled_keys)
        self._epoch = 0
        self._stale_epoch = -1
        self._connected = False
        self._away_since = time.monotonic()
        self._refusal = ""
        self._wake = asyncio.Event()
        self._urgent = False
        """Somebody waits for what is in the queue."""
        self._report_now = False
        self._overflow: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # What callers ask.

    @property
    def pending_facts(self) -> int:
        """Facts in memory that the learner has not acknowledged."""
        return len(self._pending)

    @property
    def journaled_through(self) -> int:
        """The learner has acknowledged all facts that were numbered here, up to this number."""
        if not self._spool.size_bytes:  # what it holds may have any number
            own = (fact.sequence for fact in self._pending.values() if fact.incarnation == self._incarnation)
            self._journaled_through = max(self._journaled_through, next(own, self._sequence + 1) - 1)
        return self._journaled_through

    @property
    def connected(self) -> bool:
        """Whether the learner has answered on the present stream."""
        return self._connected

    def known(self) -> tuple[dict[str, PackedFact], Set[str], Set[str]]:
        """By key: facts on their way, and two sets of those settled last. As of now, for many questions.

        Facts may be added to those on their way; see `room`, `took` and `send_on`.
        """
        return self._pending, self._settled.younger, self._settled.older

    @property
    def has_room(self) -> bool:
        """Whether memory takes what a batch of turns brings; if not, they wait for the disk."""
        return len(self._pending) + min(_BATCH_FACTS, self._most_pending // 4) <= self._most_pending

    def room(self) -> tuple[int, int, int]:
        """How many new facts are taken now, and their numbers: the incarnation, and the first sequence."""
        return self._most_pending - len(self._pending), self._incarnation, self._sequence + 1

    @property
    def can_record(self) -> bool:
        """Whether one more decision can be kept until the learner takes it."""
        return not self._spool.full or (
            self._connected and len(self._pending) < self._config.max_pending_facts
        )

    # What callers do.

    def add(self, facts: Iterable[PackedFact]) -> list[PackedFact]:
        """Sends facts on, except those that are settled or on their way; those not known to be settled.

        Memory at twice its bound, the disk being full or slow, takes none: they are left in their tokens,
        and whoever waits for them hears that they are not recorded. See `has_room`.
        """
        taken: list[str] = []
        unsettled = [fact for each in facts if (fact := self._admit(each, taken)) is not None]
        self.send_on(taken)
        return unsettled

    def took(self, keys: list[str]) -> None:
        """Sends facts on that were added to those known to be on their way, numbered as `room` says."""
        self._sequence += len(keys)
        self.send_on(keys)

    def send_on(self, keys: list[str]) -> None:
        """Sends facts on that were added to those known to be on their way, and had their numbers."""
        had_none = not self._queue
        self._queue += keys
        # Otherwise the sender's timer is set already.
        if had_none or len(self._queue) >= self._config.max_batch_facts:
            self._wake.set()
        if len(self._pending) > self._config.max_pending_facts:
            self._begin_overflow()

    async def settle(self, facts: Sequence[PackedFact], wait_ms: float | None = None) -> int | None:
        """Returns when all the facts are settled: the journal's cursor, or None when they are only spooled.

        `wait_ms`: how long the learner is waited for before the disk is, `settle_wait_ms` if not given.

        Raises SpoolFullError when neither the learner nor the disk takes them, FactRefusedError when the
        learner will never take them.
        """
        loop = asyncio.get_running_loop()
        group = _Group({fact.key for fact in facts}, loop.create_future())
        for fact in facts:
            self._groups.setdefault(fact.key, []).append(group)
            if fact.key in self._settled and len(self._pending) < self._most_pending:
                # Sent again, since the journal's cursor is in the answer; it has had its number.
                self._settled.discard(fact.key)
                self._pending[fact.key] = fact
                self._queue.append(fact.key)
        self.add(facts)
        # What is on its way already is not hurried by sending what is not.
        if self._connected and not self._urgent and any(key in group.missing for key in self._queue):
            self._urgent = True
            self._wake.set()
        # Not asyncio.wait: a busy actor's turns come by here, and it takes several times as long.
        timer = loop.call_later(self._patience_s(wait_ms), _tell, group.done, None)
        try:
            cursor = await group.done
            if cursor is None:
                await self.spool(facts)
            return cursor
        finally:
            timer.cancel()
            self._forget(group, facts)

    async def until_settled(self, facts: Sequence[PackedFact], wait_ms: float) -> bool:
        """Whether the learner has settled all of them, waited for so long; the disk is not asked.

        A refused one is settled, too. A fraction of what `settle` costs: one is watched at a time, the newest
        first, with which the others mostly come.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._patience_s(wait_ms)
        for fact in reversed(facts):
            if fact.key in self._pending:
                done: asyncio.Future[int | None] = loop.create_future()
                self._watched.setdefault(fact.key, []).append(done)
                timer = loop.call_at(ends_at, _tell, done, None)
                try:
                    if await done is None:
                        return False
                finally:
                    timer.cancel()
                    self._watch_no_more(fact.key, done)
            elif fact.key not in self._settled:  # memory has not taken it
                return False
        return True

    def _watch_no_more(self, key: str, done: asyncio.Future[int | None]) -> None:
        watching = self._watched.get(key, [])
        if done in watching:
            watching.remove(done)
            if not watching:
                del self._watched[key]

    async def spool(self, facts: Sequence[PackedFact]) -> None:
        """Returns when the facts are fsynced, from where they will be sent on; raises SpoolFullError."""
        # With the numbers under which those that are on their way may arrive, too.
        await self._spool.append([self._pending.get(fact.key, fact) for fact in facts])
        self._settled.add([fact.key for fact in facts])
        self._wake.set()

    def report_soon(self) -> None:
        """Reports to the learner at once: something that it shows has changed."""
        self._report_now = True
        self._wake.set()

    def start(self) -> None:
        """Begins to connect, and goes on until `close`."""
        self._task = asyncio.create_task(self._run(), name="uplink")

    async def close(self, timeout_s: float) -> bool:
        """Gives the learner time to take what is left, spools the rest; True if nothing is left unsent."""
        self.report_soon()
        began_at = time.monotonic()
        while self._unsent():
            waited_s = time.monotonic() - began_at
            if waited_s >= (timeout_s if self._connected else min(timeout_s, self._config.reach_s)):
                break
            await asyncio.sleep(0.02)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._overflow is not None:
            await self._overflow
        try:
            await self._spool.append(list(self._pending.values()))
        except SpoolFullError as error:
            logger.error("%d facts are lost unless their tokens come back: %s", len(self._pending), error)
            return False
        return not self._unsent()

    def _unsent(self) -> bool:
        return bool(self._pending) or self._spool.oldest() is not None

    def _admit(self, fact: PackedFact, taken: list[str]) -> PackedFact | None:
        """The fact of this key that is on its way, this one if there is room; None: it is settled."""
        if fact.key in self._settled:
            return None
        if (known := self._pending.get(fact.key)) is not None:
            return known
        if len(self._pending) < self._most_pending:
            if not fact.sequence:
                self._sequence += 1
                fact = fact.numbered(self._incarnation, self._sequence)
            self._pending[fact.key] = fact
            taken.append(fact.key)
        return fact

    # Waiting for facts to be settled.

    def _patience_s(self, wait_ms: float | None) -> float:
        """What is left of the wait for a learner that has been away for some time already."""
        patience_s = (self._config.settle_wait_ms if wait_ms is None else wait_ms) / 1000
        if not self._connected:
            patience_s -= time.monotonic() - self._away_since
        return max(patience_s, 0.0)

    def _forget(self, group: _Group, facts: Iterable[PackedFact]) -> None:
        for fact in facts:
            groups = [each for each in self._groups.get(fact.key, ()) if each is not group]
            if groups:
                self._groups[fact.key] = groups
            else:
                self._groups.pop(fact.key, None)

    def _acknowledge(self, keys: Sequence[str], cursor: int) -> None:
        self._settled.add(keys)
        for key in keys:
            self._pending.pop(key, None)
            for group in self._groups.get(key, ()) if self._groups else ():
                group.missing.discard(key)
                if not group.missing:
                    _tell(group.done, cursor)
            for done in self._watched.pop(key, ()) if self._watched else ():
                _tell(done, cursor)

    def _refuse(self, refused: training_pb2.Refused) -> None:
        """A malformed fact: nothing will ever take it, so it leaves memory and tokens, and is told of."""
        logger.error("the learner refused the fact %s: %s", refused.key, refused.reason)
        self._pending.pop(refused.key, None)
        self._settled.add([refused.key])
        for done in self._watched.pop(refused.key, ()):
            _tell(done, 0)
        for group in self._groups.get(refused.key, ()):
            if not group.done.done():
                group.done.set_exception(FactRefusedError(refused.reason))
                # Whoever waits has seen it or has gone; asyncio need not complain.
                group.done.exception()

    # Memory that runs over.

    def _begin_overflow(self) -> None:
        if (self._overflow is None or self._overflow.done()) and not self._spool.full:
            self._overflow = asyncio.create_task(self._overflow_to_spool())

    async def _overflow_to_spool(self) -> None:
        """Moves the oldest facts that are not in flight to the disk."""
        while len(self._pending) > self._config.max_pending_facts and self._queue:
            count = min(self._config.max_batch_facts, len(self._queue))
            keys = [self._queue.popleft() for _ in range(count)]
            facts = [self._pending[key] for key in keys if key in self._pending]
            try:
                await self.spool(facts)
            except SpoolFullError as error:
                self._queue.extendleft(reversed(keys))
                logger.error("%d facts stay in memory: %s", len(self._pending), error)
                return
            for key in keys:
                self._pending.pop(key, None)

    # The stream.

    async def _run(self) -> None:
        pause_s = self._config.reconnect_min_s
        while True:
            try:
                await self._session()
            except (StreamEndedError, LearnerAwayError) as error:
                reason = error.details if isinstance(error, StreamEndedError) else str(error)
                self._note_refusal(error)
                if self._connected:
                    logger.warning("the learner is away: %s", reason)
                    pause_s = self._config.reconnect_min_s
                else:
                    logger.debug("the learner is still away: %s", reason)
            finally:
                self._lose()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, self._config.reconnect_max_s)

    def _note_refusal(self, error: Exception) -> None:
        """Tells once that the learner does not let this actor in: that does not pass by itself."""
        denied = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        reason = ""
        if isinstance(error, StreamEndedError) and error.code in denied:
            reason = error.details
        if reason and reason != self._refusal:
            logger.error("the learner refuses this actor: %s", reason)
        self._refusal = reason

    def _lose(self) -> None:
        """Everything unacknowledged is to be sent again, oldest first."""
        if self._connected:
            self._away_since = time.monotonic()
        self._connected = False
        self._queue = deque(self._pending)

    async def _session(self) -> None:
        stream = _Stream(await self._open())
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("uplink-send", self._send(stream)),
                ("uplink-receive", self._receive(stream)),
                ("uplink-watch", self._watch(stream)),
            )
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            stream.call.cancel()
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _open(self) -> Stream | AioStream:
        opening = asyncio.create_task(self._link.stream(_APPEND), name="uplink-open")
        try:
            # Not asyncio.wait_for: before Python 3.12 it may swallow the cancellation that ends this task.
            done, _ = await asyncio.wait((opening,), timeout=self._config.ack_timeout_s)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unused)
            opening.cancel()
            raise
        if not done:
            opening.cancel()
            raise LearnerAwayError(f"no connection within {self._config.ack_timeout_s:g} s")
        return opening.result()

    async def _send(self, stream: _Stream) -> None:
        while True:
            self._wake.clear()
            if not self._connected:
                # An empty batch first: facts go only where somebody answers.
                if not stream.sequence:
                    await self._send_batch(stream, [], segment=None)
            elif self._may_send(stream):
                await self._prepare_replay(stream)
                if time.monotonic() >= self._due_at(stream):
                    await self._send_batch(stream, self._next_live(), segment=None)
                if stream.replay and stream.replay.facts:
                    facts = _next_of(stream.replay.facts, self._config.max_batch_facts)
                    stream.replay.unacknowledged += 1
                    await self._send_batch(stream, facts, segment=stream.replay.segment)
                    continue
            await self._wait_for_work(stream)

    def _may_send(self, stream: _Stream) -> bool:
        return len(stream.in_flight) < self._config.max_batches_in_flight

    def _due_at(self, stream: _Stream) -> float:
        """When the next batch is to go: at once if somebody waits, else with what comes meanwhile."""
        many = len(self._queue) >= self._config.max_batch_facts
        if self._report_now or many or self._urgent:
            return 0.0
        if self._queue:
            return stream.sent_at + self._config.linger_ms / 1000
        return stream.report_due_at

    async def _wait_for_work(self, stream: _Stream) -> None:
        """Until there is something to send, or a report is due."""
        # Not asyncio.wait_for, as above.
        timer = None
        if self._connected and self._may_send(stream):
            pause_s = self._due_at(stream) - time.monotonic()
            timer = asyncio.get_running_loop().call_later(max(pause_s, 0.0), self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    def _next_live(self) -> list[PackedFact]:
        facts: list[PackedFact] = []
        size = 0
        while self._queue and len(facts) < self._config.max_batch_facts and size < _MAX_BATCH_BYTES:
            fact = self._pending.get(self._queue.popleft())
            if fact is not None:
                facts.append(fact)
                size += len(fact.body)
        self._urgent = self._urgent and bool(self._queue)
        return facts

    async def _send_batch(self, stream: _Stream, facts: list[PackedFact], segment: Path | None) -> None:
        stream.sequence += 1
        batch = training_pb2.FactBatch(sequence=stream.sequence)
        now = time.monotonic()
        if self._report_now or now >= stream.report_due_at:
            batch.report.CopyFrom(self._report())
            self._report_now = False
            stream.report_due_at = now + self._config.report_interval_s
        stream.sent_at = now
        stream.in_flight.append(_Batch(stream.sequence, [fact.key for fact in facts], now, segment))
        bodies = [fact.body for fact in facts]
        head = batch.SerializeToString()
        await stream.call.write(joining(head, training_pb2.FactBatch.FACTS_FIELD_NUMBER, bodies))

    async def _prepare_replay(self, stream: _Stream) -> None:
        """Reads the oldest spool segment, once the one before is acknowledged and the learner is there."""
        if stream.replay is not None or not self._connected or time.monotonic() < stream.replay_after:
            return
        segment = self._spool.oldest()
        if segment is None:
            return
        try:
            facts = await self._spool.read(segment)
        except OSError as error:
            logger.error("the spool segment %s cannot be read: %s", segment, error)
            stream.replay_after = time.monotonic() + self._config.report_interval_s
            return
        if facts:
            stream.replay = _Replay(segment, deque(facts))
        else:
            await self._spool.remove(segment)

    async def _receive(self, stream: _Stream) -> None:
        while True:
            ack = _ack(await stream.call.read())
            self._check_epoch(ack)
            if not stream.in_flight or stream.in_flight[0].sequence != ack.sequence:
                raise LearnerAwayError(f"it acknowledged batch {ack.sequence} out of order")
            awaited = stream.replay is not None or not self._connected or not self._may_send(stream)
            batch = stream.in_flight.popleft()
            for refused in ack.refused:
                self._refuse(refused)
            gone = {refused.key for refused in ack.refused}
            self._acknowledge([key for key in batch.keys if key not in gone], ack.cursor)
            if batch.segment is not None:
                await self._trim(stream)
            if not self._connected:
                self._connected = True
                logger.info("the learner is there, epoch %d", ack.epoch)
            if awaited:  # by the sender
                self._wake.set()

    def _check_epoch(self, ack: training_pb2.Ack) -> None:
        """An older epoch is an old learner still running, or a restored journal: it settles nothing."""
        if ack.epoch < self._epoch:
            error = LearnerAwayError(f"its epoch went back from {self._epoch} to {ack.epoch}")
            if ack.epoch != self._stale_epoch:
                hint = "stop the old learner, or restart the actors if an older journal was restored"
                logger.error("facts are kept back from the learner: %s; %s", error, hint)
            self._stale_epoch = ack.epoch
            raise error
        self._epoch = ack.epoch

    async def _trim(self, stream: _Stream) -> None:
        replay = stream.replay
        assert replay is not None
        replay.unacknowledged -= 1
        if not replay.facts and not replay.unacknowledged:
            await self._spool.remove(replay.segment)
            stream.replay = None

    async def _watch(self, stream: _Stream) -> None:
        """A frozen learner keeps its connection open and says nothing."""
        started_at = time.monotonic()
        while True:
            await asyncio.sleep(self._config.ack_timeout_s / 5)
            oldest = stream.in_flight[0].sent_at if stream.in_flight else None
            if oldest is None and not self._connected:
                oldest = started_at
            if oldest is not None and time.monotonic() - oldest > self._config.ack_timeout_s:
                raise LearnerAwayError(f"it left a batch unanswered for {self._config.ack_timeout_s:g} s")


def _close_unused(opening: asyncio.Task[Stream | AioStream]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().cancel()


def _tell(done: asyncio.Future[int | None], cursor: int | None) -> None:
    """Unless it has been told, or nobody waits any more."""
    if not done.done():
        done.set_result(cursor)


def _ack(message: bytes) -> training_pb2.Ack:
    try:
        return training_pb2.Ack.FromString(message)
    except DecodeError as error:
        raise LearnerAwayError("what it says is no acknowledgement") from error


def _next_of(facts: deque[PackedFact], most: int) -> list[PackedFact]:
    """Takes facts from the left, up to a number and a size."""
    taken: list[PackedFact] = []
    size = 0
    while facts and len(taken) < most and size < _MAX_BATCH_BYTES:
        taken.append(facts.popleft())
        size += len(taken[-1].body)
    return taken
