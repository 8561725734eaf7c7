"""Everything is killed, stopped, cut, filled and torn while people talk; afterwards nothing may be missing.

Simulated frontends talk over the SDK to a deployment of `turnwise up` and keep a log of their own: which
turns they were answered, which feedback was acknowledged. One fault after the other strikes meanwhile. In the
end the frontends finish their dialogues, and their log, the journal, the trainer's counters and `turnwise
ledger` are held against each other.

`--short`: each fault once or a few times, shorter; about two minutes. The full run kills each kind of process
a hundred times and has ten of every other fault; an hour and a half. Ctrl-C ends it after the present
fault, and what there was is reckoned up. Needs root for one fault (a full disk, as a small tmpfs), which is
left out and named where it cannot be had.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from frontends import ClientLog, Frontends
from live import QUICKSTART, status
from reckoning import (
    ANSWER_S,
    PATIENCE_S,
    Account,
    StandsStillError,
    account,
    journal_rows,
    ledger,
    ratings_met,
    until_nothing_is_missing,
)
from relay import Relay
from report import Report, quantiles, say
from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_deploy.local import DeploymentError, LocalConfig, LocalDeployment

GOALS = {"lost_feedback": 0.0, "lost_turns": 0.0, "doubled": 0.0, "worst_outage_s": 1.0}
ACTORS, PEOPLE = 3, 24
AFTER_A_DEATH_S = 3.0
"""Turns asked until then count for the outage."""
SPOOL_BYTES = 4 << 20


@dataclass(frozen=True)
class Plan:
    """How often, and how long."""

    kills: int
    others: int
    stop_s: float
    away_s: float
    disk_full_s: float


SHORT = Plan(kills=3, others=1, stop_s=4, away_s=8, disk_full_s=4)
FULL = Plan(kills=100, others=10, stop_s=20, away_s=120, disk_full_s=20)


@dataclass
class Chaos:
    """The deployment and what strikes it."""

    up: LocalDeployment
    data: Path
    relay: Relay
    plan: Plan
    chance: random.Random
    log: ClientLog
    small_disk: bool
    deaths: list[float] = field(default_factory=list)
    """When actors died."""
    struck: Counter[str] = field(default_factory=Counter)
    _dead: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    """What did not recover, or was not refused."""
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: no further fault; what there was is reckoned up."""

    def schedule(self) -> list[Callable[[], Awaitable[None]]]:
        """All faults in random order."""
        kills = [self.kill_actor, self.kill_service, self.kill_trainer]
        others = [
            self.stop_an_actor,
            self.learner_away,
            self.cut_actors_from_learner,
            self.tear_journal,
            self.tear_spool,
            self.truncate_checkpoint,
            self.second_learner,
            *([self.fill_the_disk] if self.small_disk else []),
        ]
        faults = kills * self.plan.kills + others * self.plan.others
        self.chance.shuffle(faults)
        return faults

    async def strike(self) -> None:
        """One fault after the other, each when the deployment has recovered from the one before."""
        faults = self.schedule()
        for n, fault in enumerate(faults, 1):
            if self.enough.is_set():
                return
            await asyncio.sleep(self.chance.uniform(0.3, 1.5))
            began = time.monotonic()
            await fault()
            self.struck[fault.__name__] += 1
            await self._recovered(fault.__name__)
            say(f"{n} of {len(faults)}: {fault.__name__}, recovered after {time.monotonic() - began:.1f} s")

    # Faults

    async def kill_actor(self) -> None:
        """Killed at once (SIGKILL)."""
        self.deaths.append(time.monotonic())
        self._kill(self.up.pids()[self.chance.choice(self.up.actors)])

    async def kill_service(self) -> None:
        """Killed at once; the trainer ends with it."""
        self._kill(self.up.pids()[self.up.learner])

    async def kill_trainer(self) -> None:
        """Killed at once (SIGKILL)."""
        self._kill(await self._trainer_pid())

    async def stop_an_actor(self) -> None:
        """SIGSTOP: it holds its port and its connections, and answers nothing."""
        pid = self.up.pids()[self.chance.choice(self.up.actors)]
        with _stopped(pid):
            await asyncio.sleep(self.plan.stop_s)

    async def learner_away(self) -> None:
        """Service and trainer stand still."""
        with _stopped(self.up.pids()[self.up.learner], await self._trainer_pid()):
            await asyncio.sleep(self.plan.away_s)

    async def cut_actors_from_learner(self) -> None:
        """Nothing passes, and no reset tells of it."""
        self.relay.cut()
        await asyncio.sleep(self.plan.stop_s)
        self.relay.mend()

    async def tear_journal(self) -> None:
        """The service dies, and bytes that no fsync promised lie at the end of its write-ahead log."""
        await self.kill_service()
        wal = self.data / "journal.sqlite-wal"
        if wal.exists():
            with wal.open("ab") as file:
                file.write(self.chance.randbytes(5000))

    async def tear_spool(self) -> None:
        """An actor dies while it writes to its spool."""
        with _stopped(self.up.pids()[self.up.learner]):
            await asyncio.sleep(self.plan.stop_s)
            await self.kill_actor()
            for file in (self.data / "spool").glob("*/*.facts"):
                with contextlib.suppress(OSError), file.open("ab") as segment:
                    segment.write(self.chance.randbytes(77))

    async def truncate_checkpoint(self) -> None:
        """The trainer dies, and its newest checkpoint is found torn."""
        with grpc.insecure_channel(self.up.learner) as channel:
            stub = training_pb2_grpc.OperatorStub(channel)
            request = training_pb2.SaveCheckpointRequest()
            saved = await asyncio.to_thread(stub.SaveCheckpoint, request, timeout=PATIENCE_S)
        state = Path(saved.path) / "algorithm_state.pkl"
        await self.kill_trainer()
        state.write_bytes(state.read_bytes()[:1000])

    async def second_learner(self) -> None:
        """It must refuse the journal, and say why."""
        command = [sys.executable, "-m", "turnwise_learner", "--domain", str(QUICKSTART)]
        command += ["--data", str(self.data), "--listen", "127.0.0.1:0"]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        except TimeoutError:
            process.kill()
            said = b"it went on"
        if not process.returncode:
            self.failures.append(f"a second learner was not refused: {said.decode()[-200:]}")

    async def fill_the_disk(self) -> None:
        """No byte is left for the spool while the learner is away."""
        filler = self.data / "spool" / "filler"
        with _stopped(self.up.pids()[self.up.learner]):
            try:
                with contextlib.suppress(OSError), filler.open("wb") as file:
                    while True:
                        file.write(bytes(4096))
                        file.flush()
                await asyncio.sleep(self.plan.disk_full_s)
            finally:
                filler.unlink(missing_ok=True)

    # Recovery

    async def _recovered(self, after: str) -> None:
        """All processes run, the trainer is attached, every actor is connected and holds nothing back."""
        if missing := await until_nothing_is_missing(self._missing):
            said = await asyncio.to_thread(last_words, self.data)
            self.failures.append(f"after {after}: still {missing} after {PATIENCE_S:.0f} s; {said}")
            say(self.failures[-1])

    def _missing(self) -> str:
        if any(pid is None or pid in self._dead for pid in self.up.pids().values()):
            return "a process is down"
        try:
            state = status(self.up.learner, ANSWER_S)
        except grpc.RpcError as error:
            return f"the learner does not answer ({error.code()})"
        if not self._trainer_runs(state):
            return "the trainer is away"
        connected = sum(actor.connected and actor.report.pid not in self._dead for actor in state.actors)
        return "" if connected >= ACTORS else f"{connected} of {ACTORS} actors are connected"

    def _kill(self, pid: int | None) -> None:
        if pid:
            self._dead.add(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _trainer_runs(self, state: training_pb2.LearnerStatus) -> bool:
        return state.trainer_alive and state.trainer.pid not in {0, *self._dead}

    async def _trainer_pid(self) -> int:
        if missing := await until_nothing_is_missing(self._missing):
            raise DeploymentError(f"{missing}, still after {PATIENCE_S:.0f} s")
        state = await asyncio.to_thread(status, self.up.learner, ANSWER_S)
        return int(state.trainer.pid)


@contextlib.contextmanager
def _stopped(*pids: int | None) -> Iterator[None]:
    """SIGSTOP; they go on after the block, however it ends."""
    held = [pid for pid in pids if pid]
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# The whole


async def measure(plan: Plan, seed: int, data: Path, small_disk: bool) -> Report:
    """Talks, strikes, waits until all is quiet, and reckons."""
    ports = _free_ports(2)
    began = time.monotonic()
    with Relay(f"127.0.0.1:{ports[0]}", ports[1]) as relay:
        config = LocalConfig(
            domain=QUICKSTART,
            data=data,
            actors=ACTORS,
            port=0,
            learner_port=ports[0],
            actor_arguments=("--learner", relay.address),
        )
        up = LocalDeployment(config, say=lambda words: None)
        await asyncio.to_thread(up.start)
        try:
            frontends = Frontends(up.actors, PEOPLE, seed)
            chaos = Chaos(up, data, relay, plan, random.Random(seed), frontends.log, small_disk)
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, chaos.enough.set)
            talking = asyncio.create_task(frontends.run())
            try:
                await chaos.strike()
            finally:
                frontends.stop()
                await talking
            met = await ratings_met(up.learner)
        finally:
            await asyncio.to_thread(up.stop)
    found = account(frontends.log, journal_rows(data))
    if unlearned := found.unlearned(met):
        chaos.failures.append(unlearned)
    return report_of(chaos, found, began)


def report_of(chaos: Chaos, found: Account, began: float) -> Report:
    """The last line."""
    log, (code, words) = chaos.log, ledger(chaos.data)
    if code:
        chaos.failures.append(f"the ledger does not close: {words}")
    outage = max((log.longest_wait_s(at, at + AFTER_A_DEATH_S) for at in chaos.deaths), default=0.0)
    ratios = {
        "lost_feedback": float(len(found.lost_feedback)),
        "lost_turns": float(len(found.lost_turns)),
        "doubled": float(len(found.doubled)),
        "worst_outage_s": outage,
    }
    chaos.failures += [f"undocumented: {error}" for error in log.undocumented]
    figures = {
        "faults": dict(chaos.struck),
        "left_out": [] if chaos.small_disk else ["fill_the_disk: no tmpfs can be mounted here"],
        "dialogues": log.dialogues,
        "turns": len(log.turns),
        "unrecorded_turns": len(found.unrecorded),
        "left_in_spools": sum(file.stat().st_size for file in (chaos.data / "spool").glob("*/*.facts")),
        "acknowledged_feedback": len(log.ratings),
        "acknowledged_by_spool": log.spooled,
        "errors_met": dict(log.errors),
        "answer_ms": quantiles([1000 * (b - a) for a, b in log.answers]),
        "examples": {name: of[:5] for name, of in vars(found).items() if isinstance(of, list) and of},
        "failures": chaos.failures,
        "seconds": time.monotonic() - began,
    }
    lost = any(ratios[key] > GOALS[key] for key in ("lost_feedback", "lost_turns", "doubled"))
    ok = not lost and outage < GOALS["worst_outage_s"] and not chaos.failures
    return Report("chaos", ratios, GOALS, figures, ok)


def last_words(data: Path) -> str:
    """Where every trainer of a data folder stands now, an orphan too, and the ends of the logs."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = process.read_bytes().split(b"\0")
            if b"turnwise_learner.trainer" in words and bytes(data) in words:
                os.kill(int(process.parent.name), signal.SIGUSR2)
    time.sleep(1.0)
    logs = (data / "logs" / f"{name}.log" for name in ("learner", "trainer"))
    return "\n".join(f"{log.name} ends with\n{log.read_text(errors='replace')[-6000:]}" for log in logs)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def small_spool(data: Path) -> Iterator[bool]:
    """A tmpfs of a few megabytes for the spool; yields whether there is one."""
    spool = data / "spool"
    spool.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SPOOL_BYTES}", "tmpfs", str(spool)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(spool)], check=False)


def main() -> int:
    """0 when it ran, whatever the figures; 1 when it could not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--short", action="store_true", help="about two minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="new folder that the data is left in, to be looked through")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnwise-chaos-") as folder:
        data = (options.keep or Path(folder) / "data").absolute()
        data.mkdir(parents=True)
        try:
            with small_spool(data) as small_disk:
                plan = SHORT if options.short else FULL
                report = asyncio.run(measure(plan, options.seed, data, small_disk))
        except (DeploymentError, StandsStillError, OSError) as error:
            say(f"chaos could not run: {error}")
            return 1
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
