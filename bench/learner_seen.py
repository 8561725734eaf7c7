"""What a learner shows of itself while it is loaded: how far its trainer is, and how fast."""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import cpu_s
from reckoning import PATIENCE_S
from report import spread
from turnwise.v1 import training_pb2
from turnwise_deploy.local import DeploymentError, LocalDeployment
from turnwise_learner.journal import JournalReader


@dataclass(frozen=True)
class Mark:
    """The trainer when a report of it had just come."""

    at_s: float
    cpu_s: float
    updates: int
    journaled: int
    """The journal's end, facts."""
    read: int
    """How far the trainer is in it."""


@dataclass
class Phase:
    """The trainer over some seconds, a figure a round."""

    per_s: list[float] = field(default_factory=list)
    per_cpu_s: list[float] = field(default_factory=list)
    facts_per_s: list[float] = field(default_factory=list)
    read_per_s: list[float] = field(default_factory=list)
    checkpoints: int = 0

    def add(self, before: Mark, after: Mark) -> None:
        """One round."""
        seconds, updates = after.at_s - before.at_s, after.updates - before.updates
        self.per_s.append(updates / seconds)
        self.per_cpu_s.append(updates / max(after.cpu_s - before.cpu_s, 0.01))
        self.facts_per_s.append((after.journaled - before.journaled) / seconds)
        self.read_per_s.append((after.read - before.read) / seconds)

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {
            "updates_per_s": spread(self.per_s),
            "updates_per_cpu_s": spread(self.per_cpu_s),
            "facts_per_s": statistics.median(self.facts_per_s),
            "facts_read_per_s": spread(self.read_per_s),
            "checkpoints": self.checkpoints,
        }


@dataclass
class Learner:
    """What the product's learner says and does."""

    up: LocalDeployment
    data: Path
    operator: Any
    reader: JournalReader

    async def state(self) -> training_pb2.LearnerStatus:
        """What it says of itself."""
        reply: training_pb2.LearnerStatus = await self.operator.GetStatus(
            training_pb2.GetStatusRequest(), timeout=PATIENCE_S
        )
        return reply

    async def until(self, what: str, reached: Callable[[training_pb2.LearnerStatus], bool]) -> None:
        """Waits for a state.

        Raises:
            DeploymentError: It does not come.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not reached(await self.state()):
            if time.monotonic() > deadline:
                raise DeploymentError(f"{what}: not within {PATIENCE_S:.0f} s")
            await asyncio.sleep(0.02)

    async def caught_up(self) -> None:
        """Waits until the trainer has taken in all that is in the journal."""
        await self.until(
            "the trainer reads the journal",
            lambda state: state.trainer.journal_cursor >= state.journal_cursor,
        )

    async def mark(self) -> Mark:
        """Waits for the trainer's next report; it must be training."""
        first = (await self.state()).trainer.updates
        await self.until("the trainer does updates", lambda state: state.trainer.updates > first)
        state = await self.state()
        trainer = state.trainer
        cpu = cpu_s(trainer.pid)
        return Mark(time.monotonic(), cpu, trainer.updates, state.journal_cursor, trainer.journal_cursor)

    def service_cpu_s(self) -> float:
        """That the service has used so far."""
        pid = self.up.pids()[self.up.learner]
        if pid is None:
            raise DeploymentError("the learner is down")
        return cpu_s(pid)

    def checkpoints(self) -> int:
        """That the trainer has saved so far, by its log."""
        return (self.data / "logs" / "trainer.log").read_text().count(": saved ")
