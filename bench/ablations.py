"""What each ingredient of the learner is worth: the lessons needed with one of them changed.

The course of `lessons.py`, given offline (the trainer's classes alone, without service and actor), so that
all variants run in half an hour on two cores. A line each: lessons / limit, the median of the seeds with its
bootstrap interval, and how many seeds reached the threshold at all; a seed that misses counts as 3.

    .venv/bin/python bench/ablations.py --only rewards --seeds 5
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from in_process import InProcess
from kinds import KINDS
from lessons import Outcome, a_few_at_a_time, most_lessons, outcome_of
from report import Report, median_interval, say


@dataclass(frozen=True)
class Variant:
    """One change of a kind of course."""

    kind: str
    what: str
    learning: dict[str, Any] = field(default_factory=dict)
    """Fields of TurnwiseDQNConfig."""
    epsilon: float = 0.0
    """Part of the answers drawn uniformly."""


VARIANTS = (
    Variant("rewards", "as it is"),
    Variant("rewards", "no anchor", {"anchor_weight": 0.0}),
    Variant("rewards", "no anchor, epsilon 0.1", {"anchor_weight": 0.0}, 0.1),
    Variant("rewards", "anchor and epsilon 0.1", {}, 0.1),
    Variant("rewards", "anchor weight 0.05", {"anchor_weight": 0.05}),
    Variant("rewards", "anchor weight 0.8", {"anchor_weight": 0.8}),
    Variant("rewards", "uniform replay", {"replay": {"alpha": 0.0}}),
    Variant("rewards", "no layer norm", {"layer_norm": False}),
    Variant("rewards", "2 updates a lesson", {"updates_per_lesson": 2.0}),
    Variant("rewards", "32 updates a lesson", {"updates_per_lesson": 32.0}),
    Variant("rewards", "learning rate 5e-4", {"lr": 5e-4}),
    Variant("corrections", "as it is"),
    Variant("corrections", "no margin", {"margin": 0.0}),
    Variant("corrections", "ratings of the wrong answers alone", {"correction_weight": 0.0}),
    Variant("corrections", "no share of the batch", {"replay": {"protected_share": 0.0}}),
    Variant("noisy", "as it is"),
    Variant("noisy", "uniform replay", {"replay": {"alpha": 0.0}}),
    Variant("noisy", "huber loss", {"td_error_loss_fn": "huber"}),
    Variant("three_turns", "as it is"),
    Variant("three_turns", "no contrast", {"contrast_weight": 0.0}),
    Variant("three_turns", "contrast weight 0.5", {"contrast_weight": 0.5}),
    Variant("three_turns", "contrast weight 2", {"contrast_weight": 2.0}),
    Variant("three_turns", "no anchor", {"anchor_weight": 0.0}),
    Variant("three_turns", "target network moved every 500 updates", {"target_network_update_freq": 500}),
    Variant("three_turns", "three-step returns", {"n_step": 3}),
    Variant("three_turns", "no double Q", {"double_q": False}),
)


def main() -> int:
    """Prints a line a variant; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = list(dict.fromkeys(variant.kind for variant in VARIANTS))
    parser.add_argument("--only", help=f"some of {','.join(names)}")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each variant")
    parser.add_argument("--parallel", type=int, default=2, help="seeds taught at a time")
    given = parser.parse_args()
    only = given.only.split(",") if given.only else names
    if unknown := set(only) - set(names):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    chosen = [variant for variant in VARIANTS if variant.kind in only]
    print(asyncio.run(measure(chosen, range(1, given.seeds + 1), given.parallel)).line())
    return 0


async def measure(variants: Sequence[Variant], seeds: range, parallel: int) -> Report:
    """Gives every variant the course of every seed."""
    report = Report("ablations")
    with InProcess(parallel) as in_process:
        for variant in variants:
            jobs = [teach(variant, seed, in_process) for seed in seeds]
            outcomes = await a_few_at_a_time(jobs, parallel)
            figures = figures_of(outcomes)
            report.figures[f"{variant.kind}: {variant.what}"] = figures
            low, high = figures["ratio_interval_95"]
            say(
                f"{variant.kind:12} {variant.what:40} {figures['ratio']:.2f} ({low:.2f} to {high:.2f}), "
                f"{figures['reached']} of {len(seeds)} reached"
            )
    return report


async def teach(variant: Variant, seed: int, in_process: InProcess) -> Outcome:
    """One seed of one variant."""
    (kind,) = (kind for kind in KINDS if kind.name == variant.kind)
    task, most = kind.task(seed), await most_lessons(kind, seed)
    learning = {**kind.manner.learning, **variant.learning}
    manner = replace(kind.manner, learning=learning, epsilon=variant.epsilon)
    course = await in_process.offline_course(task, manner, kind.threshold, most)
    return await outcome_of(kind, course)


def figures_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Of all seeds of one variant."""
    ratios = [outcome.ratio for outcome in outcomes]
    return {
        "ratio": statistics.median(ratios),
        "ratio_interval_95": median_interval(ratios),
        "ratios": ratios,
        "reached": sum(not outcome.missed for outcome in outcomes),
    }


if __name__ == "__main__":
    sys.exit(main())
