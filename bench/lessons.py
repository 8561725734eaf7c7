"""Teacher effort: how many lessons until the bot answers right, against the information limit.

A fresh quickstart bot is taught over and over again, through the live service: SDK, actor, journal, trainer,
broadcast. Every seed has its own deployment and data folder, its own phrases, right answers and order. After
each lesson the teacher waits until the answering policy has learned it, then asks all phrases in dialogues
that teach nothing. The limit (`limit.py`) is given the same lessons and breaks its ties the way the bot did.

`--short`: five seeds, rewards and corrections. `--offline`: the same course with the trainer's classes alone,
without service and actor: quick research, not the benchmark's figure.
"""

import argparse
import asyncio
import math
import statistics
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import turnwise
from course import STREAK, Course, take
from in_process import InProcess
from kinds import KINDS, SHORT, STOCK, Kind
from limit import BayesPupil
from live import Lags, live_pupil
from report import Report, median_interval, say, spread
from turnwise_deploy.local import DeploymentError

MISS = 3.0
"""A seed that has not reached the threshold at so many times the limit counts as this ratio."""
REACHING = 0.95
"""Share of seeds that must reach the threshold."""
CURVE_EVERY = 100


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    short: bool
    seeds: int
    first_seed: int
    only: tuple[str, ...]
    parallel: int
    offline: bool


@dataclass
class Outcome:
    """One seed of one kind."""

    kind: Kind
    seed: int
    limit: int
    """Lessons that the best possible pupil needed; 0: there is none to compare with."""
    reached: int | None
    scores: list[float]
    """Accuracy after each lesson."""
    wrong_answers: int = 0
    """Of all turns given; who teaches has to sit through them."""
    seconds: float = 0.0
    lags: Lags = field(default_factory=Lags)
    limit_unrelated: int = 0
    """Of paraphrases: the limit of a pupil that takes every wording for a phrase of its own."""

    @property
    def missed(self) -> bool:
        """Not reached in time."""
        return self.reached is None or self.reached > MISS * self.limit

    @property
    def ratio(self) -> float:
        """Lessons / limit, misses as the cap."""
        return MISS if self.reached is None else min(MISS, self.reached / self.limit)


def main() -> int:
    """0 when it ran, whatever the figures; 1 when it could not."""
    options = parse_options()
    try:
        report = asyncio.run(measure(options))
    except (DeploymentError, turnwise.TurnwiseError, OSError) as error:
        say(f"lessons could not run: {error}")
        return 1
    print(report.line())
    return 0


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [kind.name for kind in (*KINDS, STOCK)]
    parser.add_argument("--short", action="store_true", help="five seeds of " + " and ".join(SHORT))
    parser.add_argument("--seeds", type=int, help="seeds of each kind (default: 5 in the short run, else 30)")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--only", help=f"some of {','.join(names)}")
    parser.add_argument("--parallel", type=int, default=2, help="seeds taught at a time")
    parser.add_argument("--offline", action="store_true", help="the trainer's classes alone; for research")
    given = parser.parse_args(argv)
    only = tuple(given.only.split(",")) if given.only else SHORT if given.short else tuple(names)
    if unknown := set(only) - set(names):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    if STOCK.name in only and "rewards" not in only:
        only = ("rewards", *only)
    seeds = given.seeds or (5 if given.short else 30)
    return Options(given.short, seeds, given.first_seed, only, given.parallel, given.offline)


async def measure(options: Options) -> Report:
    """Teaches every seed of every kind, a few at a time."""
    began = time.monotonic()
    with InProcess(options.parallel) as in_process:
        jobs = [
            _teach(kind, seed, options, in_process)
            for kind in (*KINDS, STOCK)
            if kind.name in options.only
            for seed in range(options.first_seed, options.first_seed + min(options.seeds, kind.most_seeds))
        ]
        outcomes = await a_few_at_a_time(jobs, options.parallel)
    report = summary(outcomes)
    report.figures |= {
        "transport": "offline" if options.offline else "live",
        "parallel": options.parallel,
        "seconds": time.monotonic() - began,
    }
    return report


async def a_few_at_a_time(jobs: Sequence[Coroutine[Any, Any, Outcome]], count: int) -> list[Outcome]:
    """Outcomes in the order of the jobs; the first that fails ends the others in good order."""
    places = asyncio.Semaphore(count)

    async def in_place(job: Coroutine[Any, Any, Outcome]) -> Outcome:
        async with places:
            return await job

    tasks = [asyncio.create_task(in_place(job)) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for job in jobs:
            job.close()


async def _teach(kind: Kind, seed: int, options: Options, in_process: InProcess) -> Outcome:
    began = time.monotonic()
    task, lags = kind.task(seed), Lags()
    most = kind.lessons or await most_lessons(kind, seed)
    if kind is STOCK:
        course = await in_process.stock_course(task, kind.threshold)
    elif options.offline:
        course = await in_process.offline_course(task, kind.manner, kind.threshold, most)
    else:
        async with live_pupil(task, kind.manner, lags) as pupil:
            course = await take(task, pupil, 2.0 if kind.lessons else kind.threshold, most)
    outcome = await outcome_of(kind, course)
    outcome.seconds, outcome.lags = time.monotonic() - began, lags
    best = f"limit {outcome.limit}, " if outcome.limit else ""
    say(
        f"{kind.name} seed {seed}: reached at {outcome.reached}, {best}"
        f"accuracy {outcome.scores[-1]:.2f} after {len(course.scores)} lessons, {outcome.seconds:.0f} s"
    )
    return outcome


async def most_lessons(kind: Kind, seed: int) -> int:
    """Lessons after which to give up: those of an unlucky best possible pupil, times the cap."""
    limits = []
    for luck in range(9):
        task = kind.task(seed).by_meaning()
        ties = np.random.default_rng([seed, luck]).permuted(task.ties, axis=1)
        course = await take(task, BayesPupil(task, ties), kind.threshold, len(task.order))
        limits.append(len(course.scores) - STREAK + 1)
    return math.ceil(MISS * statistics.median(limits)) + STREAK


async def outcome_of(kind: Kind, course: Course) -> Outcome:
    """The course beside that of the best possible pupil, who has the same luck."""
    task = course.task
    accuracy = [score / len(task.phrases) for score in course.scores]
    outcome = Outcome(kind, task.seed, 0, course.reached(kind.threshold), accuracy, course.wrong_answers)
    if kind.lessons:
        return outcome
    tasks = [task] if task.meanings is None else [task.by_meaning(), task]
    limits = []
    for best in tasks:
        ties = course.first_tries() if best is task else best.ties
        limits.append(await take(best, BayesPupil(best, ties), kind.threshold, len(task.order)))
    reached = [limit.reached(kind.threshold) or len(task.order) for limit in limits]
    outcome.limit, outcome.limit_unrelated = reached[0], reached[1] if len(reached) > 1 else 0
    return outcome


# Figures


def summary(outcomes: Sequence[Outcome]) -> Report:
    """Ratios and figures of all kinds."""
    report = Report("lessons")
    by_kind: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_kind.setdefault(outcome.kind.name, []).append(outcome)
    for name, seeds in by_kind.items():
        kind = seeds[0].kind
        if kind is STOCK:
            _add_stock(report, seeds, by_kind["rewards"])
            continue
        figures = _figures(kind, seeds)
        report.figures[name] = figures
        if kind.key:
            report.ratios[kind.key], report.goals[kind.key] = figures["ratio"], kind.goal
            report.ok &= figures["ratio"] <= kind.goal and figures["seeds_reaching"] >= REACHING
    return report


def _figures(kind: Kind, seeds: Sequence[Outcome]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "seeds": len(seeds),
        "seconds_a_seed": statistics.median(s.seconds for s in seeds),
    }
    figures |= _lag_figures(seeds)
    if kind.lessons:
        marks = range(CURVE_EVERY, kind.lessons + 1, CURVE_EVERY)
        figures["accuracy_after_turns"] = {
            str(n): statistics.median(s.scores[min(n, len(s.scores)) - 1] for s in seeds) for n in marks
        }
        return figures
    ratios = [s.ratio for s in seeds]
    figures |= {
        "ratio": statistics.median(ratios),
        "ratio_interval_95": median_interval(ratios),
        "ratios": ratios,
        "seeds_reaching": sum(not s.missed for s in seeds) / len(seeds),
        "lessons": spread([MISS * s.limit if s.reached is None else s.reached for s in seeds]),
        "wrong_answers": spread([s.wrong_answers for s in seeds]),
        "limit": spread([s.limit for s in seeds]),
    }
    if seeds[0].limit_unrelated:
        unrelated = [(s.reached or MISS * s.limit) / s.limit_unrelated for s in seeds]
        figures["ratio_to_the_limit_of_unrelated_phrases"] = statistics.median(unrelated)
    return figures


def _lag_figures(seeds: Sequence[Outcome]) -> dict[str, Any]:
    lags = [lag * 1000 for outcome in seeds for lag in outcome.lags.seconds]
    if not lags:
        return {}
    timed_out = sum(outcome.lags.timed_out for outcome in seeds)
    updates = [outcome.lags.updates / len(outcome.scores) for outcome in seeds]
    return {
        "updates_a_lesson": statistics.median(updates),
        "lag_ms": {"median": statistics.median(lags), "p95": float(np.percentile(lags, 95))},
        "waits_timed_out": timed_out,
    }


def _add_stock(report: Report, stock: Sequence[Outcome], ours: Sequence[Outcome]) -> None:
    """Stock's lessons / ours, seed by seed; a stock seed that never reached counts with all it was given."""
    mine = {outcome.seed: outcome for outcome in ours}
    lessons = [s.reached or len(s.scores) for s in stock]
    ratios = [
        count / (mine[s.seed].ratio * mine[s.seed].limit) for s, count in zip(stock, lessons, strict=True)
    ]
    report.figures[STOCK.name] = {
        "seeds": len(stock),
        "ratio": statistics.median(ratios),
        "ratio_interval_95": median_interval(ratios),
        "seeds_reaching": sum(s.reached is not None for s in stock) / len(stock),
        "lessons": spread(lessons),
        "wrong_answers": spread([s.wrong_answers for s in stock]),
        "wrong_answers_vs_ours": statistics.median(
            s.wrong_answers / max(1, mine[s.seed].wrong_answers) for s in stock
        ),
        "seconds_a_seed": statistics.median(s.seconds for s in stock),
    }
    report.ratios[STOCK.key], report.goals[STOCK.key] = statistics.median(ratios), STOCK.goal
    report.ok &= report.ratios[STOCK.key] >= STOCK.goal


if __name__ == "__main__":
    sys.exit(main())
