"""Operator service: what the learner is doing, and the calls that change it."""

import asyncio
import math
import os
from collections.abc import Callable
from typing import Any, cast

import grpc

from turnwise.v1 import dialogue_pb2, training_pb2, training_pb2_grpc
from turnwise_actor.policy import Domain, PolicyVersion
from turnwise_learner.journal import DECIDED, ENDED, FEEDBACK, STARTED
from turnwise_learner.service import versions
from turnwise_learner.service.actors import Actors
from turnwise_learner.service.broadcast import Broadcast
from turnwise_learner.service.errors import Answering, Context, RefusedError, invalid, unavailable
from turnwise_learner.service.journal import Journal, now_ms
from turnwise_learner.service.standing_orders import EXPLORATION_PARTS, StandingOrders, exploration_given
from turnwise_learner.service.trainer_link import TRAINER_AWAY, TrainerLink

_DEFAULT_INTERVAL_MS, _MIN_INTERVAL_MS = 1000, 50
_DEFAULT_VERSIONS, _MAX_VERSIONS = 50, 10_000
_NAMED_VERSIONS = 10
_MODES = dialogue_pb2.Mode.values()
_KINDS = training_pb2.Exploration.Kind


class OperatorServicer(training_pb2_grpc.OperatorServicer):
    """Answers operators.

    Args:
        trainer_restarts: How often the trainer child was started again.
        store: What is in the store; None: there is none.
        command_timeout_s: Longest wait for the trainer in calls without a deadline.
    """

    def __init__(
        self,
        domain: Domain,
        journal: Journal,
        broadcast: Broadcast,
        actors: Actors,
        link: TrainerLink,
        orders: StandingOrders,
        trainer_restarts: Callable[[], int],
        store: Callable[[], training_pb2.StoreStatus | None],
        command_timeout_s: float,
    ) -> None:
        self._domain = domain
        self._journal = journal
        self._broadcast = broadcast
        self._actors = actors
        self._link = link
        self._orders = orders
        self._trainer_restarts = trainer_restarts
        self._store = store
        self._command_timeout_s = command_timeout_s
        self._started_ms = now_ms()

    def status(self) -> training_pb2.LearnerStatus:
        """What the learner is doing now; reads nothing from the disk but two file sizes."""
        counts = self._journal.counts
        status = training_pb2.LearnerStatus(
            domain=self._domain.name,
            domain_fingerprint=self._domain.fingerprint,
            journal_id=self._journal.journal_id,
            epoch=self._journal.epoch,
            journal_cursor=self._journal.last_cursor,
            journal_bytes=self._journal.bytes(),
            actors=self._actors.status(),
            trainer=self._link.report,
            trainer_alive=self._link.attached,
            dialogues=counts.get(STARTED, 0),
            decisions=counts.get(DECIDED, 0),
            feedback=counts.get(FEEDBACK, 0),
            ended=counts.get(ENDED, 0),
            started_ms=self._started_ms,
            pid=os.getpid(),
            trainer_restarts=self._trainer_restarts(),
            store=self._store(),
        )
        current = self._broadcast.current
        if current is not None:
            status.published.generation = current.version.generation
            status.published.number = current.version.number
            status.published_learned_through = current.learned_through
        return status

    async def GetStatus(self, request: Any, context: Any) -> training_pb2.LearnerStatus:
        """See training.proto."""
        return self.status()

    async def WatchStatus(self, request: training_pb2.GetStatusRequest, context: object) -> None:  # type: ignore[override]
        """See training.proto."""
        interval_s = max(request.interval_ms or _DEFAULT_INTERVAL_MS, _MIN_INTERVAL_MS) / 1000
        while True:
            await cast(Context, context).write(self.status())
            await asyncio.sleep(interval_s)

    async def SaveCheckpoint(
        self, request: training_pb2.SaveCheckpointRequest, context: object
    ) -> training_pb2.CheckpointInfo:
        """See training.proto."""
        async with Answering(context) as call:
            done = await self._ask(training_pb2.TrainerCommand(save_checkpoint=request), call)
            return done.checkpoint

    async def ListVersions(
        self, request: training_pb2.ListVersionsRequest, context: object
    ) -> training_pb2.VersionList:
        """See training.proto."""
        async with Answering(context):
            limit = min(request.limit or _DEFAULT_VERSIONS, _MAX_VERSIONS)
            listed = await self._journal.submit(lambda c: versions.recent_versions(c, limit))
            return training_pb2.VersionList(versions=listed)

    async def Rollback(
        self, request: training_pb2.RollbackRequest, context: object
    ) -> training_pb2.RollbackReply:
        """See training.proto."""
        async with Answering(context) as call:
            done = await self._ask(await self._rollback_command(request.version), call)
            return training_pb2.RollbackReply(published=done.published)

    async def Pause(self, request: Any, context: object) -> training_pb2.PauseReply:
        """See training.proto."""
        return await self._pause(True, context)

    async def Resume(self, request: Any, context: object) -> training_pb2.PauseReply:
        """See training.proto."""
        return await self._pause(False, context)

    async def SetExploration(
        self, request: training_pb2.SetExplorationRequest, context: object
    ) -> training_pb2.SetExplorationReply:
        """See training.proto."""
        async with Answering(context) as call:
            _check_exploration(request)
            done = await self._ask(training_pb2.TrainerCommand(set_exploration=request), call)
            await self._orders.explore(request)
            return training_pb2.SetExplorationReply(exploration=done.exploration)

    async def _pause(self, paused: bool, context: object) -> training_pb2.PauseReply:
        async with Answering(context) as call:
            done = await self._ask(training_pb2.TrainerCommand(pause=paused), call)
            await self._orders.pause(paused)
            return training_pb2.PauseReply(paused=done.paused)

    async def _rollback_command(self, version: dialogue_pb2.PolicyVersion) -> training_pb2.TrainerCommand:
        """Journals the generation that a rollback begins."""
        if not self._link.attached:
            raise unavailable(TRAINER_AWAY)
        wanted = PolicyVersion(version.generation, version.number)
        known = await self._journal.submit(versions.checkpoints)
        if wanted not in known:
            raise RefusedError(grpc.StatusCode.NOT_FOUND, _no_checkpoint(wanted, list(known)))
        generation = await self._link.begin_generation("rollback")
        rollback = training_pb2.RollbackCommand(checkpoint=known[wanted], generation=generation)
        return training_pb2.TrainerCommand(rollback=rollback)

    async def _ask(self, command: training_pb2.TrainerCommand, call: Context) -> training_pb2.CommandDone:
        """The trainer's answer, within the caller's deadline."""
        remaining_s = call.time_remaining()
        timeout_s = self._command_timeout_s if remaining_s is None else remaining_s
        return await self._link.command(command, min(timeout_s, self._command_timeout_s))


def _check_exploration(request: training_pb2.SetExplorationRequest) -> None:
    if request.mode not in (dialogue_pb2.TEACH, dialogue_pb2.SERVE):
        got = dialogue_pb2.Mode.Name(request.mode) if request.mode in _MODES else request.mode
        raise invalid("mode", got, "TEACH or SERVE; the other modes never explore")
    given = exploration_given(request)
    if not given:
        parts = ", ".join(EXPLORATION_PARTS)
        raise invalid(parts, "none of them", "at least one; what is not given stays as it is")
    if "epsilon" in given and not 0.0 <= request.epsilon <= 1.0:
        raise invalid("epsilon", request.epsilon, "a probability, from 0 to 1")
    if "kind" in given and request.kind not in (_KINDS.GREEDY, _KINDS.SOFTMAX):
        named = request.kind in _KINDS.values()
        raise invalid("kind", _KINDS.Name(request.kind) if named else request.kind, "GREEDY or SOFTMAX")
    if "temperature" in given and not 0.0 < request.temperature < math.inf:
        raise invalid("temperature", request.temperature, "a finite number above 0")


def _no_checkpoint(version: PolicyVersion, known: list[PolicyVersion]) -> str:
    named = ", ".join(map(str, known[:_NAMED_VERSIONS])) or "none yet"
    more = f" and {len(known) - _NAMED_VERSIONS} earlier ones" if len(known) > _NAMED_VERSIONS else ""
    return f"version: got {version}, which has no checkpoint; those that can be gone back to: {named}{more}"
