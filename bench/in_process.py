"""Pupils that need Ray in their process: they run in workers, so that the benchmark's loop stays free."""

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType

from course import Course, Task
from live import Manner


class InProcess:
    """Worker processes, started when first used and ended with the block."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        if error is not None:
            # Ctrl-C, or a course that failed: nobody waits for the courses under way.
            for worker in multiprocessing.active_children():
                worker.terminate()
        self._pool.shutdown(cancel_futures=True)

    async def offline_course(self, task: Task, manner: Manner, threshold: float, most: int) -> Course:
        """The trainer's classes alone, without service and actor."""
        return await self._run(_offline_course, task, manner, threshold, most)

    async def stock_course(self, task: Task, threshold: float) -> Course:
        """Stock RLlib DQN."""
        return await self._run(_stock_course, task, threshold)

    async def _run(self, function: object, *arguments: object) -> Course:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, mp_context=spawn)
        loop = asyncio.get_running_loop()
        course: Course = await loop.run_in_executor(self._pool, function, *arguments)  # type: ignore[arg-type]
        return course


def _offline_course(task: Task, manner: Manner, threshold: float, most: int) -> Course:
    from offline import teach_offline

    course: Course = teach_offline(task, manner, threshold, most)
    return course


def _stock_course(task: Task, threshold: float) -> Course:
    from stock import teach_stock

    course: Course = teach_stock(task, threshold)
    return course
