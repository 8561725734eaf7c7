"""What the learner tells Prometheus: its status, as `turnwise status` shows it, and the room on its disk."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from turnwise.v1 import training_pb2

Status = training_pb2.LearnerStatus

# What is counted in the journal only grows. What the trainer counts is told as gauges: after a crash it goes
# on from the last checkpoint, and Prometheus would take the step back for a counter that began at 0.
_COUNTERS: tuple[tuple[str, str, Callable[[Status], float]], ...] = (
    ("learner_dialogues_total", "Dialogues begun, in the journal.", lambda status: status.dialogues),
    ("learner_decisions_total", "Decisions in the journal.", lambda status: status.decisions),
    (
        "learner_feedback_total",
        "Rewards, corrections, retractions and comments in the journal.",
        lambda status: status.feedback,
    ),
    ("learner_ended_total", "Ends of dialogues in the journal.", lambda status: status.ended),
    (
        "trainer_restarts_total",
        "How often the service started a trainer that had died again.",
        lambda status: status.trainer_restarts,
    ),
)
_GAUGES: tuple[tuple[str, str, Callable[[Status], float]], ...] = (
    ("learner_epoch", "Starts of the service on this journal.", lambda status: status.epoch),
    (
        "learner_journal_cursor",
        "Position of the last fact in the journal.",
        lambda status: status.journal_cursor,
    ),
    (
        "learner_journal_bytes",
        "Size of the journal on disk, its write-ahead log included.",
        lambda status: status.journal_bytes,
    ),
    (
        "learner_policy_generation",
        "Generation of the policy published last; 0 before the first.",
        lambda status: status.published.generation,
    ),
    (
        "learner_policy_number",
        "Number, within its generation, of the policy published last.",
        lambda status: status.published.number,
    ),
    (
        "learner_policy_learned_through",
        "Journal position through which the policy published last has learned.",
        lambda status: status.published_learned_through,
    ),
    ("trainer_up", "Whether a trainer is attached: 1 or 0.", lambda status: status.trainer_alive),
    (
        "trainer_paused",
        "Whether learning is paused: 1 or 0.",
        lambda status: status.trainer.paused,
    ),
    (
        "trainer_start_time_seconds",
        "When the trainer started, in seconds since the epoch; 0 before the first.",
        lambda status: status.trainer.started_ms / 1000,
    ),
    (
        "trainer_journal_cursor",
        "Journal position up to which the trainer has read.",
        lambda status: status.trainer.journal_cursor,
    ),
    (
        "trainer_learned_through",
        "Journal position whose lessons have had all their updates.",
        lambda status: status.trainer.learned_through,
    ),
    ("trainer_turns", "Confirmed turns that are learned from.", lambda status: status.trainer.turns),
    (
        "trainer_rated_turns",
        "Confirmed turns with a rating or a correction.",
        lambda status: status.trainer.rated_turns,
    ),
    ("trainer_lessons", "Lessons taken in.", lambda status: status.trainer.lessons),
    ("trainer_updates", "Updates of the network done.", lambda status: status.trainer.updates),
    ("trainer_updates_per_second", "Updates done a second.", lambda status: status.trainer.updates_per_s),
    (
        "trainer_updates_owed",
        "Updates that lessons have granted and that are still to be done.",
        lambda status: status.trainer.updates_owed,
    ),
    (
        "trainer_updates_forgone",
        "Updates given up, because lessons came faster than they can be learned or after a rollback.",
        lambda status: status.trainer.updates_forgone,
    ),
    ("trainer_replay_rows", "Turns in replay.", lambda status: status.trainer.replay_rows),
    (
        "trainer_replay_capacity_rows",
        "Turns that replay can hold.",
        lambda status: status.trainer.replay_capacity,
    ),
    (
        "trainer_replay_evicted_rows",
        "Turns that have made room in replay for newer ones.",
        lambda status: status.trainer.evicted_rows,
    ),
    ("trainer_loss", "Loss on the newest batch.", lambda status: status.trainer.loss),
    (
        "trainer_mean_abs_td_error",
        "Mean size of the TD errors on the newest batch.",
        lambda status: status.trainer.mean_abs_td_error,
    ),
    (
        "trainer_skipped_batches",
        "Batches left out because their loss was not finite.",
        lambda status: status.trainer.skipped_batches,
    ),
    (
        "trainer_warnings",
        "Warnings that `turnwise status` shows now.",
        lambda status: len(status.trainer.warnings),
    ),
    (
        "trainer_checkpoint_timestamp_seconds",
        "When the last checkpoint was saved, in seconds since the epoch; 0: none yet.",
        lambda status: status.trainer.last_checkpoint.saved_ms / 1000,
    ),
    (
        "trainer_checkpoint_journal_cursor",
        "Journal position that the last checkpoint holds.",
        lambda status: status.trainer.last_checkpoint.journal_cursor,
    ),
)


class LearnerMetrics(Collector):
    """Collects the learner's metrics.

    Args:
        status: What an operator is told.
        data: The data folder.
    """

    def __init__(self, status: Callable[[], Status], data: Path) -> None:
        self._status = status
        self._data = data

    def collect(self) -> Iterator[Metric]:
        """All of them, at one moment."""
        status = self._status()
        yield InfoMetricFamily(
            "turnwise_learner",
            "Which domain is learned, into which journal.",
            {
                "domain": status.domain,
                "domain_fingerprint": status.domain_fingerprint,
                "journal_id": status.journal_id,
            },
        )
        for name, text, read in _COUNTERS:
            yield CounterMetricFamily(f"turnwise_{name}", text, read(status))
        for name, text, read in _GAUGES:
            yield GaugeMetricFamily(f"turnwise_{name}", text, read(status))
        yield GaugeMetricFamily(
            "turnwise_learner_disk_free_bytes",
            "Room left on the disk of the data folder.",
            shutil.disk_usage(self._data).free,
        )
        yield _actors(status)
        yield _counters(status.trainer)
        yield from _exploration(status.trainer.exploration)


def _actors(status: Status) -> Metric:
    connected = sum(actor.connected for actor in status.actors)
    actors = GaugeMetricFamily(
        "turnwise_learner_actors",
        "Actors by state: connected, or away for an hour at most.",
        labels=["state"],
    )
    actors.add_metric(["connected"], connected)
    actors.add_metric(["away"], len(status.actors) - connected)
    return actors


def _counters(report: training_pb2.TrainerReport) -> Metric:
    counters = GaugeMetricFamily(
        "turnwise_trainer_count",
        "What else the trainer counts, by the names that `turnwise status` shows.",
        labels=["of"],
    )
    for name, count in sorted(report.counters.items()):
        counters.add_metric([name], count)
    return counters


def _exploration(exploration: training_pb2.Exploration) -> Iterator[Metric]:
    kinds = training_pb2.Exploration
    epsilon = GaugeMetricFamily(
        "turnwise_trainer_exploration_epsilon",
        "Probability of a uniform draw from the allowed actions, by mode.",
        labels=["mode"],
    )
    temperature = GaugeMetricFamily(
        "turnwise_trainer_exploration_temperature",
        "Temperature of the softmax that is drawn from otherwise, by mode; 0: the best action is taken.",
        labels=["mode"],
    )
    for mode, probability, kind, warmth in (
        ("teach", exploration.teach_epsilon, exploration.teach_kind, exploration.teach_temperature),
        ("serve", exploration.serve_epsilon, exploration.serve_kind, exploration.serve_temperature),
    ):
        epsilon.add_metric([mode], probability)
        temperature.add_metric([mode], warmth if kind == kinds.SOFTMAX else 0.0)
    yield epsilon
    yield temperature
