"""Many open dialogues for a long time: memory stays flat in every process, and nothing is lost.

A deployment of `turnwise up` with two actors and everything at its default. All dialogues are open at once;
each takes a turn now and then, a tenth of the turns is rated, dialogues end after some turns and others take
their place. Every process is looked at now and then: anonymous memory (neither the journal's mapped pages nor
page cache), open files, threads.

Each process remembers a bounded number of things: an actor the decisions continued last and the facts settled
last, the trainer the turns in replay and 10,000 dialogues. Before anything is measured, the dialogues go on
faster until those are full (`--warm-turns`). From then on all is expected to be flat, the trainer too.

`--short`: 1,000 dialogues, about three minutes; too few turns to fill what is remembered, so that the trainer
grows by its rows. The full run: 10,000 dialogues, an hour.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from frontends import Frontends, Habits
from live import QUICKSTART, status
from processes import Holding, descendants, holding
from reckoning import PATIENCE_S, Account, StandsStillError, account, journal_rows, ledger, ratings_met
from report import Report, quantiles, say
from turnwise_actor.policy import Domain, Encoder
from turnwise_deploy.local import DeploymentError, LocalConfig, LocalDeployment

GOALS = {"memory_growth": 1.05}
FLAT_BYTES_PER_H = 5e6
"""Growth that counts as none: an hour's noise of an allocator."""
ACTORS = 2
TURNS, RATED = (2, 30), 0.1
WARM_RATE = 400.0
WARM_UP_PATIENCE = 10.0
"""Times as long as planned, and it is given up."""
SAY_EVERY_S = 60.0
ROW_BYTES = 150
"""Of a turn in replay, beside its inputs and actions; see ReplayConfig.capacity_turns."""


@dataclass(frozen=True)
class Plan:
    """How many, how fast, how long."""

    open: int = 10_000
    """Dialogues open at once."""
    rate: float = 60.0
    """Turns a second, over all, while it is measured."""
    minutes: float = 60.0
    """Measured, after the warm-up."""
    warm_turns: int = 120_000
    """Turns before anything is measured: more than replay holds, and until the tables of what actors remember
    have grown for the last time."""
    settle_s: float = 10.0
    """Left out when the pace has fallen after that: what was owed is learned."""

    def __post_init__(self) -> None:
        idle_s = Domain.load(QUICKSTART).dialogue.idle_timeout_s
        if not 0 < 2 * self.open / self.rate < idle_s:
            raise ValueError(
                f"{self.open} dialogues at {self.rate:g} turns/s pause for up to "
                f"{2 * self.open / self.rate:.0f} s; wanted less than the domain's idle_timeout, {idle_s:g} s"
            )

    @property
    def look_every_s(self) -> float:
        """Twenty looks at least."""
        return min(10.0, 3.0 * self.minutes)


FULL = Plan()
SHORT = Plan(open=1000, minutes=2, warm_turns=15_000)


@dataclass
class Watch:
    """Looks at every process of a deployment, and at this one."""

    up: LocalDeployment
    every_s: float
    held: dict[str, list[Holding]] = field(default_factory=dict)
    """By process, oldest first."""
    rows: list[tuple[float, int]] = field(default_factory=list)
    """When, and turns in replay."""
    failures: list[str] = field(default_factory=list)
    _pids: dict[str, int] = field(default_factory=dict)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(self.every_s)

    def look(self) -> None:
        """Once."""
        now = time.monotonic()
        for name, pid in self._processes().items():
            known = self._pids.setdefault(name, pid)
            if known != pid:
                self.failures.append(f"{name} was started again")
                self._pids[name] = pid
            if (seen := holding(pid, now)) is not None:
                self.held.setdefault(name, []).append(seen)

    def since(self, at_s: float) -> dict[str, list[Holding]]:
        """What was seen from then on; a process that came and went is left out."""
        late = {
            name: [seen for seen in all_seen if seen.at_s >= at_s] for name, all_seen in self.held.items()
        }
        return {name: seen for name, seen in late.items() if len(seen) > 1}

    def rows_at(self, at_s: float) -> int:
        """Turns in replay at the first look from then on."""
        return next((rows for at, rows in self.rows if at >= at_s), 0)

    def _processes(self) -> dict[str, int]:
        pids = self.up.pids()
        found = {f"actor {i}": pids[address] for i, address in enumerate(self.up.actors, 1)}
        found["service"] = pids[self.up.learner]
        found["frontends"] = os.getpid()
        try:
            trainer = status(self.up.learner).trainer
            found["trainer"] = trainer.pid
            self.rows.append((time.monotonic(), trainer.replay_rows))
        except grpc.RpcError as error:
            self.failures.append(f"the learner does not answer ({error.code()})")
        named = set(found.values())
        for parent in pids.values():
            others = descendants(parent) if parent else ()
            found |= {f"{name} {pid}": pid for pid, name in others if pid not in named}
        return {name: pid for name, pid in found.items() if pid}


@dataclass(frozen=True)
class Trend:
    """What became of a process's own memory."""

    first_bytes: float
    """Median of the first tenth."""
    last_bytes: float
    """Median of the last tenth."""
    bytes_per_h: float
    """Least squares."""

    @property
    def ratio(self) -> float:
        """1: nothing has grown."""
        return self.last_bytes / self.first_bytes

    @property
    def flat(self) -> bool:
        """By either measure: a small process may grow by a page, a large one by its noise."""
        return self.ratio <= GOALS["memory_growth"] or self.bytes_per_h < FLAT_BYTES_PER_H


def trend(seen: Sequence[Holding]) -> Trend:
    """Of two looks or more, oldest first."""
    own = [float(one.own_bytes) for one in seen]
    tenth = max(1, len(own) // 10)
    hours = np.array([one.at_s - seen[0].at_s for one in seen]) / 3600
    slope = float(np.polyfit(hours, own, 1)[0])
    return Trend(statistics.median(own[:tenth]), statistics.median(own[-tenth:]), slope)


@dataclass
class Soak:
    """One run."""

    plan: Plan
    frontends: Frontends
    watch: Watch
    measured_from: float = 0.0
    measured_until: float = 0.0
    least_open: int = 0
    """While it was measured."""

    async def warm_up(self) -> None:
        """Everybody begins, and all that is bounded fills."""
        longest_s = WARM_UP_PATIENCE * self.plan.warm_turns / WARM_RATE + PATIENCE_S
        self.frontends.habits.pause_s = self.plan.open / WARM_RATE
        deadline = time.monotonic() + longest_s
        while len(self.frontends.log.answers) < self.plan.warm_turns or not self._all_open:
            if time.monotonic() > deadline:
                raise DeploymentError(f"{self._words()} after {longest_s:.0f} s of warming up")
            await self._pass(1.0)
        self.frontends.habits.pause_s = self.plan.open / self.plan.rate
        await self._pass(2 * self.plan.open / WARM_RATE + self.plan.settle_s)

    async def go_on(self) -> None:
        """What is measured."""
        self.measured_from = time.monotonic()
        self.least_open = self.frontends.open
        while (left := self.measured_from + 60 * self.plan.minutes - time.monotonic()) > 0:
            await self._pass(min(1.0, left))
            self.least_open = min(self.least_open, self.frontends.open)
        self.measured_until = time.monotonic()

    @property
    def _all_open(self) -> bool:
        """But for those that are just taking another's place."""
        return self.frontends.open > 0.99 * self.plan.open

    async def _pass(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 1.0))
            if time.monotonic() > self._say_at:
                self._say_at = time.monotonic() + SAY_EVERY_S
                say(self._words())

    _say_at: float = 0.0

    def _words(self) -> str:
        own = {name: seen[-1].own_bytes / 1e6 for name, seen in self.watch.held.items()}
        memory = ", ".join(f"{name} {mb:.1f}" for name, mb in own.items())
        turns = len(self.frontends.log.answers)
        stage = "measured" if self.measured_from else "warming up"
        return f"{stage}: {self.frontends.open} open, {turns} turns; MB: {memory}"


async def measure(plan: Plan, seed: int, data: Path) -> Report:
    """Talks, watches, waits until all is quiet, and reckons."""
    config = LocalConfig(domain=QUICKSTART, data=data, actors=ACTORS, port=0, learner_port=0)
    up = LocalDeployment(config, say=say)
    await asyncio.to_thread(up.start)
    try:
        frontends = Frontends(up.actors, plan.open, seed, Habits(turns=TURNS, rated=RATED))
        soak = Soak(plan, frontends, Watch(up, plan.look_every_s))
        talking = asyncio.create_task(frontends.run())
        watching = asyncio.create_task(soak.watch.run())
        try:
            await soak.warm_up()
            await soak.go_on()
        finally:
            watching.cancel()
            frontends.stop()
            await asyncio.gather(talking, return_exceptions=True)
        met = await ratings_met(up.learner)
    finally:
        await asyncio.to_thread(up.stop)
    code, words = ledger(data)
    if code:
        soak.watch.failures.append(f"the ledger does not close: {words}")
    found = account(frontends.log, journal_rows(data))
    if unlearned := found.unlearned(met):
        soak.watch.failures.append(unlearned)
    return report_of(soak, found)


def report_of(soak: Soak, found: Account) -> Report:
    """The last line."""
    log, failures = soak.frontends.log, soak.watch.failures
    failures += [f"undocumented: {error}" for error in log.undocumented]
    seen = soak.watch.since(soak.measured_from)
    trends = {name: trend(of) for name, of in seen.items()}
    kept_flat = [trends[name] for name in trends if name.startswith("actor") or name == "service"]
    answers = [b - a for a, b in log.answers if soak.measured_from <= b <= soak.measured_until]
    hours = (soak.measured_until - soak.measured_from) / 3600
    lost = {name: len(getattr(found, name)) for name in ("lost_feedback", "lost_turns", "doubled")}
    figures = {
        "minutes": 60 * hours,
        "open": soak.plan.open,
        "least_open": soak.least_open,
        "dialogues": log.dialogues,
        "turns": len(log.turns),
        "rated_turns": len(log.ratings),
        "turns_per_s": len(answers) / (3600 * hours),
        "answer_ms": quantiles([1000 * answer for answer in answers]),
        "errors_met": dict(log.errors),
        "lost": lost,
        "failures": failures,
        "processes": {name: _figures(trends[name], seen[name]) for name in trends},
        "replay": _replay(soak, trends, len(answers), hours),
    }
    worst = max(kept_flat, key=lambda one: one.ratio)
    ok = all(one.flat for one in kept_flat) and not any(lost.values()) and not failures
    return Report("soak", {"memory_growth": worst.ratio}, GOALS, figures, ok)


def _figures(of: Trend, seen: Sequence[Holding]) -> dict[str, Any]:
    return {
        "first_mb": of.first_bytes / 1e6,
        "last_mb": of.last_bytes / 1e6,
        "mb_per_h": of.bytes_per_h / 1e6,
        "ratio": of.ratio,
        "rss_mb": seen[-1].rss_bytes / 1e6,
        "files": [seen[0].files, seen[-1].files],
        "threads": [seen[0].threads, seen[-1].threads],
    }


def _replay(soak: Soak, trends: dict[str, Trend], turns: int, hours: float) -> dict[str, float]:
    """The trainer's growth, and what of it the turns in replay account for."""
    domain = Domain.load(QUICKSTART)
    row_bytes = 4 * Encoder(domain).size + 3 * len(domain.action_ids) + ROW_BYTES
    began, ended = soak.watch.rows_at(soak.measured_from), soak.watch.rows[-1][1]
    grown = trends["trainer"].bytes_per_h * hours
    return {
        "rows_at_first": began,
        "rows_at_last": ended,
        "row_bytes": row_bytes,
        "grown_mb": grown / 1e6,
        "grown_by_rows_mb": (ended - began) * row_bytes / 1e6,
        "grown_bytes_per_turn": grown / max(1, turns),
    }


def main() -> int:
    """0 when it ran, whatever the figures; 1 when it could not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--short", action="store_true", help="1,000 dialogues, about three minutes")
    parser.add_argument("--open", type=int, help=f"dialogues open at once; default: {FULL.open}")
    parser.add_argument("--rate", type=float, help=f"turns a second over all; default: {FULL.rate:g}")
    parser.add_argument("--minutes", type=float, help=f"measured; default: {FULL.minutes:g}")
    parser.add_argument("--warm-turns", type=int, help=f"before that; default: {FULL.warm_turns}")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chosen = {name: getattr(options, name) for name in ("open", "rate", "minutes", "warm_turns")}
    given = {name: value for name, value in chosen.items() if value is not None}
    try:
        plan = replace(SHORT if options.short else FULL, **given)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory(prefix="turnwise-soak-") as folder:
        try:
            report = asyncio.run(measure(plan, options.seed, Path(folder) / "data"))
        except (DeploymentError, StandsStillError, OSError) as error:
            say(f"soak could not run: {error}")
            return 1
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
