"""The trainer's own loop, in this process, attached to a real service with a real journal."""

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from rich.console import Console

from tests.learner.trainer.facts import Journal, make_domain
from tests.learner.trainer.test_event_log import events
from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.policy import Domain
from turnwise_cli.status import render
from turnwise_learner.service.config import ServiceConfig
from turnwise_learner.service.facts import to_rows
from turnwise_learner.service.server import Service, running
from turnwise_learner.trainer.config import TrainerConfig
from turnwise_learner.trainer.training import Training

pytestmark = [pytest.mark.usefixtures("_ray"), pytest.mark.filterwarnings("ignore")]


@dataclass
class Learner:
    """A service, and a trainer that goes on its own or step by step."""

    service: Service
    operator: Any
    training: Training
    running: "asyncio.Task[None] | None" = None

    def run(self) -> None:
        """The trainer's loop, as its process runs it, until the end of the test."""
        self.running = asyncio.create_task(asyncio.to_thread(self.training.run))

    async def step(self) -> None:
        """One round of the loop, which does not run."""
        await asyncio.to_thread(self.training.step)

    async def tell(self, numbers: Iterable[int]) -> int:
        """Lessons, one a turn, as the service takes them from actors; the journal's last position."""
        journal = Journal(make_domain())
        for i in numbers:
            dialogue = {"dialogue_id": f"d{i}"}
            journal.decided(f"t{i}", text=f"phrase {i % 7}", **dialogue).fact.key = f"d:t{i}"
            journal.feedback(f"t{i}", reward=1 if i % 2 else -1, **dialogue).fact.key = f"f:t{i}"
        rows, refused = to_rows((row.fact for row in journal.rows), "actor")
        assert not refused
        return await (await self.service.journal.append(rows))

    async def report(self, cursor: int) -> training_pb2.LearnerStatus:
        """What the service says once the trainer has taken in the journal up to `cursor`."""
        while True:
            status = await self.operator.GetStatus(training_pb2.GetStatusRequest())
            if status.trainer.journal_cursor >= cursor:
                return status
            await asyncio.sleep(0.01)

    async def settled(self, cursor: int) -> training_pb2.TrainerReport:
        """The same, once nothing is owed."""
        while (status := await self.report(cursor)).trainer.updates_owed:
            await asyncio.sleep(0.01)
        return status.trainer


@asynccontextmanager
async def learner(
    folder: Path, idle_wait_s: float = 0.02, checkpoint_every_turns: int = 1000, **learning: Any
) -> AsyncIterator[Learner]:
    domain = folder / "domain.yaml"
    domain.write_text(make_domain(hidden=[16], **learning).to_json())
    config = ServiceConfig(domain, folder / "data", listen="127.0.0.1:0", start_trainer=False)
    async with running(config) as service, grpc.aio.insecure_channel(service.address) as channel:
        trainer = TrainerConfig(
            config.data,
            domain,
            service.local_address,
            idle_wait_s=idle_wait_s,
            checkpoint_every_turns=checkpoint_every_turns,
            # At every step, so that steps can be counted.
            publish_every_s=0.0,
            report_every_s=0.0,
        )
        stop, wake = threading.Event(), threading.Event()
        training = await asyncio.to_thread(Training, trainer, Domain.load(domain), stop, wake)
        one = Learner(service, training_pb2_grpc.OperatorStub(channel), training)
        try:
            yield one
        finally:
            stop.set()
            wake.set()
            if one.running is None:
                one.run()
            await asyncio.wait_for(one.running, 30)


async def test_500_lessons_are_8_updates_each_within_1_percent(tmp_path: Path) -> None:
    async with learner(tmp_path) as one:
        one.run()
        for first in range(0, 500, 50):
            cursor = await one.tell(range(first, first + 50))
        report = await one.settled(cursor)
        assert report.lessons == 500
        assert report.updates == pytest.approx(8 * report.lessons, rel=0.01)
        assert (report.updates_forgone, report.learned_through) == (0, cursor)


async def test_an_idle_trainer_waits_for_nothing_but_a_lesson(tmp_path: Path) -> None:
    async with learner(tmp_path, idle_wait_s=100.0) as one:
        one.run()
        for number in range(3):
            report = await one.settled(await one.tell([number]))
            assert report.updates == 8 * (number + 1)
        assert (await one.operator.Pause(training_pb2.PauseRequest())).paused


async def test_a_long_debt_holds_up_neither_facts_nor_policies(tmp_path: Path) -> None:
    async with learner(tmp_path) as one:
        cursor = await one.tell(range(500))
        await one.step()
        for step in range(1, 20):
            assert (await one.report(cursor)).trainer.updates_owed > 3000
            cursor = await one.tell([500 + step])
            await one.step()
            status = await one.report(cursor)
            assert status.trainer.updates == 16 * (step + 1)  # no more between two looks at the journal
            assert status.trainer.policy_version.number == step + 1
        published = (await one.operator.ListVersions(training_pb2.ListVersionsRequest())).versions
        assert [version.updates for version in published] == [16 * step for step in range(20, 0, -1)]


async def test_many_turns_are_saved_soon_but_saving_is_not_all_that_is_done(tmp_path: Path) -> None:
    async with learner(tmp_path, checkpoint_every_turns=50) as one:

        async def saved_through(numbers: Iterable[int]) -> int:
            cursor = await one.tell(numbers)
            while one.training.algorithm.env_runner.cursor < cursor:
                await one.step()
            await one.step()
            return one.training._last_checkpoint.manifest.journal_cursor

        first = await saved_through(range(50))
        one.training._save_s = 1e6  # as if the disk were slow
        assert await saved_through(range(50, 100)) == first
        one.training._save_s = 0.0
        assert await saved_through(range(100, 101)) > first


async def test_an_overload_forgoes_updates_and_says_so(tmp_path: Path) -> None:
    async with learner(tmp_path, max_updates_owed=100) as one:
        cursor = await one.tell(range(200))
        await one.step()
        status = await one.report(cursor)
        told = status.trainer
        assert (told.updates, told.updates_owed, told.updates_forgone) == (16, 84, 8 * 200 - 100)
        console = Console(file=io.StringIO(), width=120)
        console.print(render(status, one.service.address, 0))
        assert "16, owed 84, forgone 1,500" in console.file.getvalue()
        one.run()
        assert (await one.settled(cursor)).learned_through == cursor
        report = await one.settled(await one.tell(range(200, 210)))
        assert (report.updates, report.updates_forgone) == (100 + 8 * 10, 1500)


async def test_tensorboard_has_the_last_report_by_the_number_of_updates(tmp_path: Path) -> None:
    async with learner(tmp_path) as one:
        one.run()
        report = await one.settled(await one.tell(range(20)))
    told = events(tmp_path / "data/logs/tensorboard", report.policy_version.generation)
    assert max(told) == report.updates == 160
    assert told[160]["training/loss"] == pytest.approx(report.loss)
    assert told[160]["training/mean_abs_td_error"] == pytest.approx(report.mean_abs_td_error)
    assert [told[160][f"experience/{name}"] for name in ("turns", "rated_turns", "lessons")] == [20] * 3
    assert told[160]["replay/rows"] == report.replay_rows == 20


async def test_a_trainer_whose_events_cannot_be_written_learns_on(tmp_path: Path) -> None:
    (tmp_path / "data/logs").mkdir(parents=True)
    (tmp_path / "data/logs/tensorboard").write_text("in the way")
    async with learner(tmp_path) as one:
        one.run()
        assert (await one.settled(await one.tell(range(5)))).updates == 40
