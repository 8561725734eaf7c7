"""How fast facts become durable, and what that costs those who wait and the trainer.

The learner is the product's, as `turnwise up` starts it. Four streams send what four busy actors would:
batches of 256 Decided facts of about 1 KB, as many in flight as an actor's uplink has. Against them, in turn
and on the same disk: the same rows into the same tables by straight SQLite, committed in the groups that the
journal was seen to grow by. Before either side begins, the trainer has read everything: SQLite has the
machine to itself, while the product has its trainer beside it, which reads what comes.

A lone fact is timed while the trainer works off updates that it owes to ratings, each next to a bare append
of 4 KB with fdatasync. In the end the trainer's updates are counted with 5,000 facts a second coming in, in
the small batches that uplinks send then, and without.

The temporary folder must be on a disk (`TMPDIR`). `--short`: about three minutes.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from fact_load import BATCH_FACTS, UPLINK, Facts, FactStream, batches
from learner_seen import Learner, Phase
from loads import connections
from report import Report, quantiles, say, spread
from straight import BareAppend, StraightSqlite
from turns import write_domain
from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.policy import Domain
from turnwise_deploy.local import DeploymentError, LocalConfig, LocalDeployment
from turnwise_learner.journal import JournalReader, journal_path
from turnwise_learner.service.facts import to_rows

GOALS = {"vs_sqlite": 0.8, "ack_vs_fsync": 10.0}
STREAMS = 4
INGEST_PER_S = 5_000
LOOK_EVERY_S = 0.002
"""At the journal's end, to see its groups. Two commits between two looks count as one group."""
LESSONS_AT_ONCE = 1_250
"""They grant 10,000 updates, the most that a trainer owes."""
LEAST_OWED = 6_000
"""Below it, lessons are given before anything more is measured: enough for a phase at 1,500 a second."""
LOOKED_AFTER = 25
"""Lone facts between two looks at the trainer."""
LATE_PART = 0.9
"""Of what was to come in: fewer, and the trainer was not measured under that load."""


@dataclass(frozen=True)
class Plan:
    """How often, how many, how long."""

    rounds: int
    batches: int
    """Of a stream in a round."""
    lone_facts: int
    phase_s: float
    """With facts coming in, and without."""


SHORT = Plan(rounds=5, batches=8, lone_facts=200, phase_s=2)
FULL = Plan(rounds=11, batches=24, lone_facts=1_000, phase_s=4)


@asynccontextmanager
async def watched_groups(reader: JournalReader) -> AsyncIterator[list[int]]:
    """Facts that the journal grew by, from one look to the next; complete after the block."""
    groups: list[int] = []
    last = reader.last_cursor()

    def look() -> None:
        nonlocal last
        if (now := reader.last_cursor()) > last:
            groups.append(now - last)
            last = now

    async def watch() -> None:
        while True:
            look()
            await asyncio.sleep(LOOK_EVERY_S)

    watching = asyncio.create_task(watch())
    try:
        yield groups
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        look()


@dataclass
class Bench:
    """All that is measured."""

    learner: Learner
    streams: list[FactStream]
    facts: Facts
    sqlite: StraightSqlite
    bare: BareAppend
    plan: Plan
    per_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu_us: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    groups: list[float] = field(default_factory=list)
    fact_bytes: int = 0
    ack_s: list[float] = field(default_factory=list)
    fsync_s: list[float] = field(default_factory=list)
    least_owed: int = LEAST_OWED
    updates_meanwhile: int = 0
    """By the trainer, while lone facts were timed."""
    phases: dict[str, Phase] = field(default_factory=lambda: {"without": Phase(), "with": Phase()})

    # Throughput

    async def throughput(self) -> None:
        """Both sides, in turn; the first round warms up."""
        for number in range(self.plan.rounds + 1):
            facts = self.facts.turns(STREAMS * self.plan.batches * BATCH_FACTS)
            groups = await self._product(facts)
            await self.learner.caught_up()
            self._sqlite(facts, groups)
            if number == 0:
                for of_warm_up in (self.per_s, self.cpu_us, self.groups):
                    of_warm_up.clear()
                continue
            rates = ", ".join(f"{name} {rate[-1]:.0f} facts/s" for name, rate in self.per_s.items())
            say(f"round {number} of {self.plan.rounds}: {rates}, groups of {statistics.median(groups):.0f}")

    async def _product(self, facts: list[training_pb2.Fact]) -> list[int]:
        bodies = batches(facts)
        self.fact_bytes = sum(map(len, bodies)) // len(facts)
        await self.learner.caught_up()
        cpu, began = self.learner.service_cpu_s(), time.perf_counter()
        async with watched_groups(self.learner.reader) as groups:
            await asyncio.gather(*(s.deliver(bodies[i::STREAMS]) for i, s in enumerate(self.streams)))
            seconds = time.perf_counter() - began
        self._note("product", len(facts), seconds, self.learner.service_cpu_s() - cpu)
        self.groups += groups
        return groups

    def _sqlite(self, facts: list[training_pb2.Fact], groups: list[int]) -> None:
        rows, _ = to_rows(facts, "bench")
        cpu, began = time.process_time(), time.perf_counter()
        self.sqlite.write(rows, groups)
        self._note("sqlite", len(rows), time.perf_counter() - began, time.process_time() - cpu)

    def _note(self, side: str, facts: int, seconds: float, cpu: float) -> None:
        self.per_s[side].append(facts / seconds)
        self.cpu_us[side].append(1e6 * cpu / facts)

    # A lone fact

    async def lone_facts(self) -> None:
        """Each timed next to a bare append, while the trainer trains."""
        bodies = batches(self.facts.turns(self.plan.lone_facts), size=1)
        for at in range(0, len(bodies), LOOKED_AFTER):
            await self._keep_busy()
            before = await self.learner.mark()
            for body in bodies[at : at + LOOKED_AFTER]:
                began = time.perf_counter()
                await self.streams[0].deliver([body])
                self.ack_s.append(time.perf_counter() - began)
                self.fsync_s.append(self.bare.seconds())
            self.updates_meanwhile += (await self.learner.mark()).updates - before.updates
            self.least_owed = min(self.least_owed, (await self.learner.state()).trainer.updates_owed)
        say(f"a lone fact: {quantiles(self.ack_s)} s, bare: {quantiles(self.fsync_s)} s")

    async def _keep_busy(self) -> None:
        """Gives lessons where the trainer would run out of updates, and waits until it has taken them in."""
        if (await self.learner.state()).trainer.updates_owed < LEAST_OWED:
            await self.streams[0].deliver(batches(self.facts.rated_turns(LESSONS_AT_ONCE)))
            await self.learner.until(
                "the trainer owes updates", lambda s: s.trainer.updates_owed > LEAST_OWED
            )
        await self.learner.caught_up()

    # The trainer

    async def trainer(self) -> None:
        """Its updates without facts coming in and with, in turn."""
        for number in range(self.plan.rounds):
            for name, phase in self.phases.items():
                await self._keep_busy()
                saved = self.learner.checkpoints()
                async with self._coming_in() if name == "with" else contextlib.nullcontext():
                    before = await self.learner.mark()
                    await asyncio.sleep(self.plan.phase_s)
                    phase.add(before, await self.learner.mark())
                phase.checkpoints += self.learner.checkpoints() - saved
                self.least_owed = min(self.least_owed, (await self.learner.state()).trainer.updates_owed)
            rates = ", ".join(f"{name} {phase.per_s[-1]:.0f}" for name, phase in self.phases.items())
            say(f"round {number + 1} of {self.plan.rounds}: {rates} updates/s")

    @asynccontextmanager
    async def _coming_in(self) -> AsyncIterator[None]:
        """Facts, until the block ends: each stream sends what has come in about `linger_ms`."""
        size = round(INGEST_PER_S * UPLINK.linger_ms / 1000 / STREAMS)
        every_s = size * STREAMS / INGEST_PER_S
        most = round(INGEST_PER_S * (2 * self.plan.phase_s + 2))
        bodies = await asyncio.to_thread(lambda: batches(self.facts.turns(most), size))
        over = asyncio.Event()
        shares = [bodies[i::STREAMS] for i in range(STREAMS)]
        sending = [
            asyncio.create_task(stream.deliver(share, every_s, over.is_set))
            for stream, share in zip(self.streams, shares, strict=True)
        ]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*sending)

    # The end

    def report(self) -> Report:
        """The last line."""
        per_s = self.per_s
        ratios = {
            "vs_sqlite": median_ratio(per_s["product"], per_s["sqlite"]),
            "ack_vs_fsync": statistics.median(self.ack_s) / statistics.median(self.fsync_s),
        }
        without, coming_in = self.phases["without"], self.phases["with"]
        failures = self._failures()
        figures = {
            "fact_bytes": self.fact_bytes,
            "facts_per_s": {name: spread(rate) for name, rate in per_s.items()},
            "cpu_us_per_fact": {name: spread(cost) for name, cost in self.cpu_us.items()},
            "facts_a_group": spread(self.groups),
            "ack_ms": quantiles([1000 * s for s in self.ack_s]),
            "fsync_ms": quantiles([1000 * s for s in self.fsync_s]),
            "updates_while_lone_facts_were_timed": self.updates_meanwhile,
            "least_updates_owed": self.least_owed,
            "trainer_slowdown": median_ratio(coming_in.per_s, without.per_s),
            "trainer_slowdown_by_cpu": median_ratio(coming_in.per_cpu_s, without.per_cpu_s),
            "trainer": {name: phase.figures() for name, phase in self.phases.items()},
            "failures": failures,
        }
        met = ratios["vs_sqlite"] >= GOALS["vs_sqlite"] and ratios["ack_vs_fsync"] <= GOALS["ack_vs_fsync"]
        return Report("ingest", ratios, GOALS, figures, met and not failures)

    def _failures(self) -> list[str]:
        failures = []
        if not self.least_owed:
            failures.append("the trainer ran out of updates while it was to train")
        if (came := statistics.median(self.phases["with"].facts_per_s)) < LATE_PART * INGEST_PER_S:
            failures.append(f"{came:.0f} facts a second came in; wanted {INGEST_PER_S}")
        if (read := statistics.median(self.phases["with"].read_per_s)) < LATE_PART * INGEST_PER_S:
            failures.append(f"the trainer read {read:.0f} facts a second; wanted {INGEST_PER_S}")
        return failures


def median_ratio(of: Sequence[float], to: Sequence[float]) -> float:
    """Median over the rounds."""
    return statistics.median(one / other for one, other in zip(of, to, strict=True))


async def measure(up: LocalDeployment, domain: Domain, data: Path, beside: Path, plan: Plan) -> Report:
    """All of it; `beside` is a folder on the same disk."""
    with contextlib.ExitStack() as files:
        reader = files.enter_context(JournalReader(journal_path(data)))
        sqlite = files.enter_context(StraightSqlite(beside / "straight.sqlite"))
        bare = files.enter_context(BareAppend(beside / "bare"))
        async with (
            grpc.aio.insecure_channel(up.learner) as channel,
            connections((up.learner,), STREAMS) as channels,
        ):
            learner = Learner(up, data, training_pb2_grpc.OperatorStub(channel), reader)
            streams = [FactStream(channel, f"bench:{i}") for i, channel in enumerate(channels, 1)]
            await asyncio.gather(*(stream.open() for stream in streams))
            bench = Bench(learner, streams, Facts(domain), sqlite, bare, plan)
            await bench.throughput()
            await bench.lone_facts()
            await bench.trainer()
            return bench.report()


def main() -> int:
    """0 when it ran, whatever the figures; 1 when it could not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--short", action="store_true", help="about three minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnwise-ingest-") as folder:
        domain, data = write_domain(Path(folder)), Path(folder) / "data"
        config = LocalConfig(domain=domain, data=data, actors=1, port=0, learner_port=0)
        try:
            with LocalDeployment(config) as up:
                plan = SHORT if options.short else FULL
                report = asyncio.run(measure(up, Domain.load(domain), data, Path(folder), plan))
        except (DeploymentError, OSError, grpc.aio.AioRpcError) as error:
            say(f"ingest could not run: {error}")
            return 1
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
