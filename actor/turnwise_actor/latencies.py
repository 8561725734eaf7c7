"""How long turns took, as a histogram that costs a turn next to nothing."""

from __future__ import annotations

from bisect import bisect_left

EDGES_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper edges of the buckets; whatever took longer is in one more."""


class Latencies:
    """Counts of durations by bucket. Used from one thread."""

    def __init__(self) -> None:
        self._counts = [0] * (len(EDGES_S) + 1)
        self.sum_s = 0.0

    def add(self, duration_s: float, times: int = 1) -> None:
        """Counts a duration; an edge belongs to the bucket below it."""
        self._counts[bisect_left(EDGES_S, duration_s)] += times
        self.sum_s += times * duration_s

    def cumulative(self) -> list[tuple[str, int]]:
        """How many durations were at most each edge, as Prometheus has it: `+Inf` last."""
        total, buckets = 0, []
        for edge, count in zip((*map(str, EDGES_S), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((edge, total))
        return buckets
