"""Training service: facts from actors into the journal, policies from the trainer to actors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
from turnwise.v1 import dialogue_pb2, training_pb2, training_pb2_grpc
from turnwise_actor.policy import PolicyVersion
from turnwise_learner.journal import JournalError
from turnwise_learner.service.actors import Actors, Presence
from turnwise_learner.service.broadcast import Broadcast
from turnwise_learner.service.errors import Context, RefusedError, unavailable
from turnwise_learner.service.facts import to_rows
from turnwise_learner.service.journal import Journal

_MAX_UNANSWERED_BATCHES = 64
"""Batches of one stream that may wait for their commit; the stream is not read beyond."""


class _Pending(NamedTuple):
    """A batch that is on its way into the journal."""

    sequence: int
    refused: list[training_pb2.Refused]
    cursor: "asyncio.Future[int] | None"
    """None: it had nothing to journal."""


@dataclass(eq=False)
class _Stream:
    """One AppendFacts call: a task reads and submits batches, the call answers them in order."""

    presence: Presence
    pending: "asyncio.Queue[_Pending | None]" = field(
        default_factory=lambda: asyncio.Queue(_MAX_UNANSWERED_BATCHES)
    )
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
