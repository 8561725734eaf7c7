"""Durations of many calls, as a histogram that stays small however long it goes on."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_DIGITS = 3
_TOLD = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)


@dataclass
class Latencies:
    """Counts of durations to three significant digits, as HdrHistogram keeps them: 900 cells a decade.

    A percentile is the duration that so many percent did not exceed, to half a unit of the third digit. The
    mean and the extremes are exact.
    """

    count: int = 0
    _cells: Counter[float] = field(default_factory=Counter)
    """Milliseconds -> how many."""
    _sum_ms: float = 0.0
    _least_ms: float = float("inf")
    _most_ms: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        ms = 1000 * seconds
        self.count += 1
        self._cells[float(f"{ms:.{_DIGITS}g}")] += 1
        self._sum_ms += ms
        self._least_ms, self._most_ms = min(self._least_ms, ms), max(self._most_ms, ms)

    def summary(self) -> dict[str, float]:
        """Milliseconds: mean, extremes, percentiles; empty while there is nothing."""
        if not self.count:
            return {}
        marks = zip(_TOLD, self._at(_TOLD), strict=True)
        return {
            "mean": round(self._sum_ms / self.count, 3),
            "min": round(self._least_ms, 3),
            **{f"p{percent:g}": min(ms, round(self._most_ms, 3)) for percent, (ms, _) in marks},
            "max": round(self._most_ms, 3),
        }

    def distribution(self) -> list[dict[str, float]]:
        """The percentiles that HdrHistogram prints: two steps to every halving of what is left above."""
        percents = list(_steps(self.count))
        return [
            {"percentile": percent, "ms": ms, "count": count}
            for percent, (ms, count) in zip(percents, self._at(percents), strict=True)
        ]

    def _at(self, percents: "list[float] | tuple[float, ...]") -> Iterator[tuple[float, int]]:
        """The duration at each of the rising percentiles, and how many calls did not exceed it."""
        cells, through, ms = iter(sorted(self._cells.items())), 0, 0.0
        for percent in percents:
            while through < max(1.0, percent / 100 * self.count) - 1e-6:
                ms, more = next(cells)
                through += more
            yield ms, through


def _steps(count: int) -> Iterator[float]:
    """Up to 100, as fine as so many values can tell apart."""
    if not count:
        return
    percent, step = 0.0, 25.0
    while 100 - percent > 50 / count:
        yield percent
        percent += step
        if percent >= 100 - 2 * step:
            step /= 2
    yield 100.0
