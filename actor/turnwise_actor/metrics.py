"""What an actor tells Prometheus. Everything is read from what is counted anyway, when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from turnwise.v1 import training_pb2
from turnwise_actor.latencies import Latencies
from turnwise_actor.policy import Domain

Report = training_pb2.ActorReport

_COUNTERS: tuple[tuple[str, str, Callable[[Report], float]], ...] = (
    ("turns_total", "Turns answered since the start.", lambda report: report.turns),
    (
        "unrecorded_turns_total",
        "Turns answered with recorded=false: neither the learner nor the disk took them.",
        lambda report: report.unrecorded_turns,
    ),
)
_GAUGES: tuple[tuple[str, str, Callable[[Report], float]], ...] = (
    (
        "pending_facts",
        "Facts in memory that the learner has not acknowledged.",
        lambda report: report.pending_facts,
    ),
    (
        "spooled_bytes",
        "Facts on disk that the learner has not acknowledged, in bytes.",
        lambda report: report.spooled_bytes,
    ),
    ("streams", "Converse streams open now.", lambda report: report.streams),
    (
        "policy_generation",
        "Generation of the policy that answers; 0 before the first.",
        lambda report: report.policy_version.generation,
    ),
    (
        "policy_number",
        "Number, within its generation, of the policy that answers.",
        lambda report: report.policy_version.number,
    ),
    (
        "learned_through",
        "Journal position through which the policy that answers has learned.",
        lambda report: report.learned_through,
    ),
    (
        "draining",
        "1 from SIGTERM on, while calls in flight finish and facts are handed over.",
        lambda report: report.draining,
    ),
)


class ActorMetrics(Collector):
    """Collects one actor's metrics.

    Args:
        domain: What it serves.
        report: What it says of itself to the learner.
        connected: Whether the learner has answered on the present stream.
        latencies: Of turns.
        spool_limit_bytes: What its spool may hold.
    """

    def __init__(
        self,
        domain: Domain,
        report: Callable[[], Report],
        connected: Callable[[], bool],
        latencies: Latencies,
        spool_limit_bytes: int,
    ) -> None:
        self._domain = domain
        self._report = report
        self._connected = connected
        self._latencies = latencies
        self._spool_limit_bytes = spool_limit_bytes

    def collect(self) -> Iterator[Metric]:
        """All of them, at one moment."""
        report = self._report()
        yield self._info(report)
        for name, text, read in _COUNTERS:
            yield CounterMetricFamily(f"turnwise_actor_{name}", text, read(report))
        for name, text, read in _GAUGES:
            yield GaugeMetricFamily(f"turnwise_actor_{name}", text, read(report))
        yield GaugeMetricFamily(
            "turnwise_actor_learner_connected",
            "Whether the learner has answered on the present stream: 1 or 0.",
            self._connected(),
        )
        yield GaugeMetricFamily(
            "turnwise_actor_spool_limit_bytes",
            "What the spool may hold; beyond it turns are not recorded.",
            self._spool_limit_bytes,
        )
        yield HistogramMetricFamily(
            "turnwise_actor_turn_seconds",
            "From a request for a turn, read, to its answer, ready to be sent; refused ones are left out.",
            self._latencies.cumulative(),
            self._latencies.sum_s,
        )

    def _info(self, report: Report) -> Metric:
        labels = {
            "address": report.address,
            "domain": self._domain.name,
            "domain_fingerprint": self._domain.fingerprint,
            "incarnation": report.incarnation,
        }
        return InfoMetricFamily("turnwise_actor", "Which actor this is, and of which domain.", labels)
