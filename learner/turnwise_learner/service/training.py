"""Training service: facts from actors into the journal, policies from the trainer to actors."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc

from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.policy import PolicyVersion
from turnwise_learner.service.actors import Actors, Presence
from turnwise_learner.service.broadcast import Broadcast
from turnwise_learner.service.errors import Answering, Context, RefusedError, unavailable
from turnwise_learner.service.journal import Appended, Journal

log = logging.getLogger(__name__)

STOPPING = "the learner is stopping"

_MAX_UNANSWERED_BATCHES = 64
"""Batches of one stream that may wait for their commit; the stream is not read beyond."""


class _Pending(NamedTuple):
    """A batch on its way into the journal."""

    sequence: int
    actor: str
    appended: "asyncio.Future[Appended] | None"
    """None: it has nothing to journal."""


@dataclass(eq=False)
class _Stream:
    """One AppendFacts call: a task reads and submits batches, the call answers them in order."""

    presence: Presence
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_UNANSWERED_BATCHES))
    pending: "asyncio.Queue[_Pending | None]" = field(default_factory=asyncio.Queue)
    """None: no more will come. `room` bounds it."""
    reader: "asyncio.Task[None] | None" = None


class TrainingServicer(training_pb2_grpc.TrainingServicer):
    """Answers actors."""

    def __init__(self, journal: Journal, broadcast: Broadcast, actors: Actors, fingerprint: str) -> None:
        self._journal = journal
        self._broadcast = broadcast
        self._actors = actors
        self._fingerprint = fingerprint
        self._streams: set[_Stream] = set()
        self._draining = False

    def drain(self) -> None:
        """Reads no more facts; batches that were read are still answered, then their streams end."""
        self._draining = True
        for stream in self._streams:
            if stream.reader is not None:
                stream.reader.cancel()

    async def AppendFacts(self, request_iterator: object, context: object) -> None:  # type: ignore[override]
        """See training.proto."""
        async with Answering(context) as call:
            if self._draining:
                raise unavailable(STOPPING)
            stream = _Stream(Presence(self._actors, call.peer()))
            stream.reader = asyncio.create_task(self._read(call, stream), name="facts-reader")
            self._streams.add(stream)
            try:
                await self._answer(call, stream)
                await asyncio.gather(stream.reader, return_exceptions=self._draining)
            finally:
                self._streams.discard(stream)
                stream.reader.cancel()
                stream.presence.leave()
            if self._draining:
                raise unavailable(STOPPING)

    async def WatchPolicy(self, request: training_pb2.WatchPolicyRequest, context: object) -> None:  # type: ignore[override]
        """See training.proto."""
        async with Answering(context) as call:
            if request.domain_fingerprint not in ("", self._fingerprint):
                raise self._foreign(request)
            have = PolicyVersion(request.have.generation, request.have.number)
            current = self._broadcast.current
            if current is not None and have > current.version:
                log.warning("actor %s has policy %s; here is %s", request.actor, have, current.version)
            async for policy in self._broadcast.newer_than(have):
                if request.map_file:
                    await call.write(policy.notice)
                    continue
                try:
                    chunks = await policy.chunks()
                except OSError as error:
                    log.warning("policy %s is not sent: %s", policy.version, error)
                    continue
                for chunk in chunks:
                    await call.write(chunk)
            raise unavailable(STOPPING)

    def _foreign(self, request: training_pb2.WatchPolicyRequest) -> RefusedError:
        message = (
            f"domain_fingerprint: got {request.domain_fingerprint}; wanted {self._fingerprint}: this "
            "learner teaches another domain; start both from the same domain file"
        )
        return RefusedError(grpc.StatusCode.FAILED_PRECONDITION, message)

    async def _read(self, call: Context, stream: _Stream) -> None:
        """Submits the batches of a stream until it ends, or until `drain`."""
        try:
            while isinstance(batch := await call.read(), training_pb2.FactBatch):
                await stream.room.acquire()
                stream.pending.put_nowait(await self._submit(batch, stream.presence))
        finally:
            stream.pending.put_nowait(None)

    async def _submit(self, batch: training_pb2.FactBatch, presence: Presence) -> _Pending:
        if batch.HasField("report"):
            presence.report(batch.report)
            if batch.report.journaled_through > presence.journaled_through:
                presence.journaled_through = batch.report.journaled_through
                self._journal.note_actor(batch.report, presence.address)
        if not batch.facts:
            return _Pending(batch.sequence, presence.address, None)
        appended = await self._journal.append_facts(batch.facts, presence.address, batch.ByteSize())
        return _Pending(batch.sequence, presence.address, appended)

    async def _answer(self, call: Context, stream: _Stream) -> None:
        while (pending := await stream.pending.get()) is not None:
            ack = training_pb2.Ack(sequence=pending.sequence, epoch=self._journal.epoch)
            if pending.appended is None:
                ack.cursor = self._journal.last_cursor
            else:
                ack.cursor, refused = await pending.appended
                if refused:
                    words = "%d facts of actor %s were refused, the first: %s"
                    log.warning(words, len(refused), pending.actor, refused[0].reason)
                ack.refused.extend(refused)
            await call.write(ack)
            stream.room.release()
