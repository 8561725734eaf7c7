"""The trainer's loop: journal -> replay -> updates -> policy versions and checkpoints."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from ray.rllib.core import COMPONENT_LEARNER_GROUP

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.access.client_access import LOCAL_TOKEN, ClientAccess
from turnwise_actor.policy import Domain, Exploration, PolicyVersion
from turnwise_learner.journal import JournalReader, journal_path
from turnwise_learner.trainer.algorithm import TurnwiseDQN, TurnwiseDQNConfig
from turnwise_learner.trainer.checkpoints import Checkpoint, CheckpointError, CheckpointFolder
from turnwise_learner.trainer.config import TrainerConfig
from turnwise_learner.trainer.event_log import EventLog
from turnwise_learner.trainer.feed import JournalFeed
from turnwise_learner.trainer.service_link import ServiceLink, hello
from turnwise_learner.trainer.versions import VersionFolder

logger = logging.getLogger("turnwise.trainer")

_WELCOME_TIMEOUT_S = 60.0
_RATE_WINDOW_S = 0.4
_SAVING_SHARE = 0.02
"""Part of the time that checkpoints for many turns may take: at a thousand turns a second there would be no
end of saving. The journal has them all."""
_NAMED_COUNTERS = {"turns", "rated_turns", "lessons", "ended"}
"""Those that a report has fields for, or that the service counts."""


class CommandError(Exception):
    """A command that cannot be carried out, with the gRPC status to answer."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Training:
    """One trainer: restores, then loops until told to stop; only the loop changes anything.

    Raises:
        CheckpointError: A checkpoint belongs to another journal, or knows facts that this one lacks.
    """

    def __init__(
        self, config: TrainerConfig, domain: Domain, stop: threading.Event, wake: threading.Event
    ) -> None:
        self._config, self._domain, self._stop, self._wake = config, domain, stop, wake
        self._started_ms = time.time_ns() // 1_000_000
        self._reader = JournalReader(journal_path(config.data))
        self._checkpoints = CheckpointFolder(config.data / "checkpoints", config.keep_checkpoints)
        self._events = EventLog(config.data / "logs" / "tensorboard") if config.tensorboard else None
        self._exploration = Exploration()
        self.algorithm, self._last_checkpoint = self._restore()
        self.algorithm.idle_wait_s = config.idle_wait_s
        resumed = self._last_checkpoint is not None or self._reader.last_generation() > 0
        access = ClientAccess(token_file=config.data / LOCAL_TOKEN)
        self._link = ServiceLink(config.service, access, hello(self._reader.journal_id, resumed), wake)
        feed = JournalFeed(self._reader, domain, wake, self._link.await_growth)
        self.algorithm.env_runner.attach(feed)
        welcome = self._link.wait_for_welcome(_WELCOME_TIMEOUT_S)
        self.algorithm.paused = welcome.paused
        for order in welcome.exploration:
            self._exploration = _changed(self._exploration, order)
        self._versions = VersionFolder(config.data / "policies", domain.fingerprint, welcome.generation)
        self._published_updates = -1
        self._published_through = -1
        self._published_at = 0.0
        self._reported_at = 0.0
        self._saved_at = time.monotonic()
        self._saved_turns = self._turns
        self._save_s = 0.0
        """What the last checkpoint took."""
        self._rate = _Rate()

    @property
    def _turns(self) -> int:
        return int(self.algorithm.env_runner.counters["turns"])

    # Restoring

    def _restore(self) -> tuple[TurnwiseDQN, Checkpoint | None]:
        algorithm = self._build()
        for checkpoint in self._checkpoints.newest_first():
            self._check(checkpoint)
            manifest = checkpoint.manifest
            shape = (self._domain.fingerprint, algorithm.module.spec.to_json())
            if (manifest.domain_fingerprint, manifest.network) != shape:
                logger.warning(
                    "checkpoint %s was trained on another domain or network: %s %s, now %s %s",
                    checkpoint.path.name,
                    manifest.domain_fingerprint,
                    manifest.network,
                    *shape,
                )
                continue
            try:
                algorithm.restore_from_path(str(checkpoint.path.resolve()))
            except Exception:
                logger.exception("checkpoint %s cannot be read; trying the one before", checkpoint.path.name)
                algorithm.stop()
                algorithm = self._build()
                continue
            logger.info("restored %s", checkpoint.path.name)
            self._exploration = algorithm.exploration
            return algorithm, checkpoint
        if self._checkpoints.latest_name():
            logger.warning("no checkpoint can be used: learning again from the journal's first fact")
        return algorithm, None

    def _build(self) -> TurnwiseDQN:
        return TurnwiseDQN(config=TurnwiseDQNConfig.for_domain(self._domain))

    def _check(self, checkpoint: Checkpoint) -> None:
        manifest, name = checkpoint.manifest, checkpoint.path.name
        if manifest.journal_id != self._reader.journal_id:
            raise CheckpointError(
                f"checkpoint {name} belongs to journal {manifest.journal_id}; the one here is "
                f"{self._reader.journal_id}. Put the two back together, or move the checkpoints away to "
                "learn again from the journal"
            )
        last = self._reader.last_cursor()
        if manifest.journal_cursor > last:
            raise CheckpointError(
                f"checkpoint {name} has learned from fact {manifest.journal_cursor}, but the journal ends at "
                f"{last}: facts are missing. Restore the journal, or move the checkpoints away"
            )

    # The loop

    def run(self) -> None:
        """Loops until stopped, then saves a checkpoint."""
        self._publish("resume" if self._last_checkpoint else "start")
        while not self._stop.is_set():
            self.step()
        logger.info("stopping: saving a checkpoint")
        self._publish_if_due(now=True)
        self._save()
        self._report(last=True)
        self._link.close()
        self._reader.close()
        self.algorithm.stop()

    def step(self) -> None:
        """Commands, the journal, some of the updates owed, and what is due of the rest.

        Raises:
            ConnectionRefusedError: The service wants another trainer.
        """
        if self._link.refused:
            raise ConnectionRefusedError(f"the service refuses this trainer: {self._link.refused}")
        self._run_commands()
        self.algorithm.advance()
        self._publish_if_due()
        self._checkpoint_if_due()
        self._report_if_due()

    def _publish_if_due(self, now: bool = False) -> None:
        updates, through = self.algorithm.learner.updates, self.algorithm.pacer.learned_through
        if updates == self._published_updates and (through == self._published_through or not now):
            return
        if now or time.monotonic() - self._published_at >= self._config.publish_every_s:
            self._publish("")

    def _publish(self, cause: str) -> None:
        path = self._versions.publish(self.algorithm, self._exploration)
        self._published_at = time.monotonic()
        self._published_updates = self.algorithm.learner.updates
        self._published_through = self.algorithm.pacer.learned_through
        published = training_pb2.PolicyPublished(
            version=_wire_version(self._versions.version),
            learned_through=self._published_through,
            updates=self._published_updates,
            file=path.name,
            cause=cause,
        )
        self._link.send(training_pb2.TrainerMessage(published=published))

    def _checkpoint_if_due(self) -> None:
        last = self._last_checkpoint
        cursor = self.algorithm.env_runner.cursor
        if last is None:
            changed = cursor > 0
        else:
            changed = (cursor, self.algorithm.learner.updates) != (
                last.manifest.journal_cursor,
                last.manifest.updates,
            )
        elapsed_s = time.monotonic() - self._saved_at
        many = self._turns - self._saved_turns >= self._config.checkpoint_every_turns
        affordable = self._save_s <= _SAVING_SHARE * elapsed_s
        if changed and (elapsed_s >= self._config.checkpoint_every_s or (many and affordable)):
            self._save()

    def _save(self, pin: bool = False) -> Checkpoint:
        started = time.monotonic()
        self.algorithm.exploration = self._exploration
        saved = self._checkpoints.save(self.algorithm, self._versions.version, self._domain.fingerprint, pin)
        self._last_checkpoint, self._saved_at, self._saved_turns = saved, time.monotonic(), self._turns
        self._save_s = self._saved_at - started
        logger.info("saved %s in %.2f s", saved.path.name, self._save_s)
        return saved

    # Commands

    def _run_commands(self) -> None:
        for command in self._link.commands():
            done = training_pb2.CommandDone(id=command.id)
            try:
                self._run_command(command, done)
            except CommandError as error:
                done.error, done.code = str(error), error.code.value[0]
            except (OSError, ValueError) as error:
                logger.exception("a command failed")
                done.error, done.code = str(error), grpc.StatusCode.INTERNAL.value[0]
            self._link.send(training_pb2.TrainerMessage(done=done))
            self._report()

    def _run_command(self, command: training_pb2.TrainerCommand, done: training_pb2.CommandDone) -> None:
        kind = command.WhichOneof("command")
        if kind == "save_checkpoint":
            done.checkpoint.CopyFrom(_checkpoint_info(self._save(command.save_checkpoint.pin)))
        elif kind == "rollback":
            self._roll_back(Path(command.rollback.checkpoint), command.rollback.generation)
            done.published.CopyFrom(_wire_version(self._versions.version))
        elif kind == "pause":
            self.algorithm.paused = command.pause
            done.paused = command.pause
        elif kind == "set_exploration":
            self._exploration = _changed(self._exploration, command.set_exploration)
            self._publish("")
            done.exploration.CopyFrom(_wire_exploration(self._exploration))
        else:
            raise CommandError(
                grpc.StatusCode.UNIMPLEMENTED, f"this trainer does not know the command {kind}"
            )

    def _roll_back(self, checkpoint: Path, generation: int) -> None:
        """Networks and optimizer of the checkpoint; replay and journal keep all that was said since."""
        part = checkpoint.resolve() / COMPONENT_LEARNER_GROUP
        if not part.is_dir():
            raise CommandError(grpc.StatusCode.NOT_FOUND, f"there is no checkpoint at {checkpoint}")
        self.algorithm.learner_group.restore_from_path(str(part))
        self.algorithm.restored_learners()
        self.algorithm.pacer.forgive()
        self._versions.begin(generation)
        self._publish("rollback")
        self._save()

    # Reporting

    def _report_if_due(self) -> None:
        if time.monotonic() - self._reported_at >= self._config.report_every_s:
            self._report()

    def _report(self, last: bool = False) -> None:
        self._reported_at = time.monotonic()
        report = self._status()
        self._link.send(training_pb2.TrainerMessage(report=report))
        if self._events is not None:
            self._events.add(report, now=last)
            if last:
                self._events.close()

    def _status(self) -> training_pb2.TrainerReport:
        algorithm, counters = self.algorithm, self.algorithm.env_runner.counters
        told = {**counters, "amended_too_late": algorithm.replay.amended_too_late}
        updates, losses = algorithm.learner.updates, algorithm.learner.last_losses
        report = training_pb2.TrainerReport(
            journal_cursor=algorithm.env_runner.cursor,
            learned_through=algorithm.pacer.learned_through,
            policy_version=_wire_version(self._versions.version),
            turns=counters["turns"],
            rated_turns=counters["rated_turns"],
            lessons=counters["lessons"],
            updates=updates,
            updates_owed=algorithm.pacer.owed,
            updates_forgone=int(algorithm.pacer.forgone),
            replay_rows=len(algorithm.replay),
            replay_capacity=algorithm.replay.config.capacity_turns,
            evicted_rows=algorithm.replay.evicted,
            paused=algorithm.paused,
            loss=losses.get("total_loss", 0.0),
            mean_abs_td_error=losses.get("td_error_mean", 0.0),
            skipped_batches=algorithm.learner.skipped_batches,
            exploration=_wire_exploration(self._exploration),
            counters={
                **{k: count for k, count in told.items() if count > 0 and k not in _NAMED_COUNTERS},
                "held": algorithm.env_runner.held,
            },
            pid=os.getpid(),
            started_ms=self._started_ms,
            updates_per_s=self._rate.of(updates),
            warnings=list(_warnings(self._domain, counters)),
        )
        if self._last_checkpoint is not None:
            report.last_checkpoint.CopyFrom(_checkpoint_info(self._last_checkpoint))
        return report


class _Rate:
    """Increase a second of a counter, over the last whole window between two looks at it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._at, self._value = clock, clock(), 0
        self._rate = 0.0

    def of(self, value: int) -> float:
        elapsed = self._clock() - self._at
        if elapsed >= _RATE_WINDOW_S:
            self._rate = max(0.0, (value - self._value) / elapsed)
            self._at, self._value = self._at + elapsed, value
        return self._rate


def _warnings(domain: Domain, counters: Any) -> Any:
    if counters["dialogue_feedback_not_learned"]:
        yield (
            f"{counters['dialogue_feedback_not_learned']} rewards were given to whole dialogues; at gamma 0 "
            "they are journaled but not learned. Set learning.gamma above 0, or rate turns"
        )
    if counters["state_not_in_domain"]:
        yield f"{counters['state_not_in_domain']} turns have a state that {domain.name!r} does not contain"


def _wire_version(version: PolicyVersion) -> dialogue_pb2.PolicyVersion:
    return dialogue_pb2.PolicyVersion(generation=version.generation, number=version.number)


def _changed(exploration: Exploration, order: training_pb2.SetExplorationRequest) -> Exploration:
    """With what an order gives; the kinds have the same names on the wire, in capitals."""
    return exploration.changed(
        dialogue_pb2.Mode.Name(order.mode),
        epsilon=order.epsilon if order.HasField("epsilon") else None,
        kind=training_pb2.Exploration.Kind.Name(order.kind).lower() if order.HasField("kind") else None,
        temperature=order.temperature if order.HasField("temperature") else None,
    )


def _wire_exploration(exploration: Exploration) -> training_pb2.Exploration:
    return training_pb2.Exploration(
        teach_epsilon=exploration.teach_epsilon,
        serve_epsilon=exploration.serve_epsilon,
        teach_kind=training_pb2.Exploration.Kind.Value(exploration.teach_kind.upper()),
        serve_kind=training_pb2.Exploration.Kind.Value(exploration.serve_kind.upper()),
        teach_temperature=exploration.teach_temperature,
        serve_temperature=exploration.serve_temperature,
    )


def _checkpoint_info(checkpoint: Checkpoint) -> training_pb2.CheckpointInfo:
    manifest = checkpoint.manifest
    return training_pb2.CheckpointInfo(
        path=str(checkpoint.path),
        updates=manifest.updates,
        journal_cursor=manifest.journal_cursor,
        saved_ms=manifest.saved_ms,
        pinned=manifest.pinned,
    )
