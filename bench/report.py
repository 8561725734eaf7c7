"""What a benchmark says at its end: one JSON line; and what its figures are made of."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Report:
    """The last line of a benchmark.

    Attributes:
        ratios: Key to the measured ratio; a key that was not measured is left out.
        goals: Key to the ratio wanted.
        figures: Whatever else was measured.
        ok: Whether every ratio measured meets its goal.
    """

    name: str
    ratios: dict[str, float] = field(default_factory=dict)
    goals: dict[str, float] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    ok: bool = True

    def line(self) -> str:
        """One JSON object in one line."""
        return json.dumps(rounded(vars(self)))


def rounded(value: Any) -> Any:
    """Floats to four significant digits, numpy's numbers as Python's, all the way down."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return value


def say(words: str) -> None:
    """Progress, for people."""
    print(words, file=sys.stderr, flush=True)


def median_interval(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(np.asarray(values), (resamples, len(values))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, high = np.percentile(values, [25, 75])
    return {"median": statistics.median(values), "q25": float(low), "q75": float(high)}


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median and the slow end."""
    ordered = sorted(values) or [0.0]
    return {f"p{q:g}": ordered[min(len(ordered) - 1, int(len(ordered) * q / 100))] for q in (50, 99, 99.9)}
