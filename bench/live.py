"""A pupil that is the whole product: SDK -> actor -> journal -> trainer -> broadcast, on this machine."""

import asyncio
import logging
import shutil
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml

import turnwise
from course import Task
from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_deploy.local import LocalConfig, LocalDeployment

QUICKSTART = Path(__file__).parents[1] / "examples/quickstart/domain.yaml"
LEARN_WAIT_S = 1.0
PROBE_EVERY_S = 0.005
REPORTED_AFTER_S = 0.5
"""The trainer reports every 0.2 s."""
EXAM_TURNS = 50
"""Turns of an examination's dialogue before a new one begins; the domain allows 60."""

logging.getLogger("turnwise_deploy").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Manner:
    """How the teacher teaches."""

    turns: int = 1
    """Turns of a dialogue."""
    open_dialogues: int = 1
    """Dialogues that take turns; more than one: ratings come that many turns late, and nobody waits."""
    reward_at_end: bool = False
    """One reward for the dialogue, the mean of its turns' ratings, instead of one a turn."""
    learning: Mapping[str, Any] = field(default_factory=dict)
    """What the domain sets under `learning` instead of the quickstart's."""
    actions: int = 10
    """Beyond the quickstart's ten, actions are added to the domain."""
    epsilon: float = 0.0
    """Part of the answers drawn uniformly; offline only."""

    @property
    def waits(self) -> bool:
        """Whether the teacher waits until each lesson is learned."""
        return self.open_dialogues == 1


@dataclass
class Lags:
    """How learning followed the lessons.

    Attributes:
        seconds: From each receipt to the first answer of a policy that has learned from it.
        timed_out: Waits that were given up.
        updates: Gradient updates that the trainer had done in the end.
    """

    seconds: list[float] = field(default_factory=list)
    timed_out: int = 0
    updates: int = 0


def write_domain(manner: Manner, folder: Path) -> Path:
    """The quickstart's domain as it is, or with the manner's changes."""
    if not manner.learning and manner.actions == 10:
        return QUICKSTART
    domain = yaml.safe_load(QUICKSTART.read_text())
    domain["learning"].update(manner.learning)
    more = range(len(domain["actions"]), manner.actions)
    domain["actions"] += [{"id": f"answer_{i}", "say": f"Answer {i}."} for i in more]
    path = folder / "domain.yaml"
    path.write_text(yaml.safe_dump(domain, sort_keys=False))
    return path


@asynccontextmanager
async def live_pupil(task: Task, manner: Manner, lags: Lags) -> AsyncIterator["LivePupil"]:
    """A fresh deployment with one actor, in a data folder of its own that is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="turnwise-lessons-"))
    domain = write_domain(manner, folder)
    up = LocalDeployment(LocalConfig(domain=domain, data=folder / "data", port=0, learner_port=0))
    try:
        await asyncio.to_thread(up.start)
        async with turnwise.AsyncClient(up.actors[0]) as bot:
            described = await bot.domain()
            yield LivePupil(bot, task, tuple(described.actions), manner, lags)
        lags.updates = await asyncio.to_thread(_updates, up.learner)
    finally:
        await asyncio.to_thread(up.stop)
        shutil.rmtree(folder, ignore_errors=True)


def status(learner: str, timeout_s: float = 10.0) -> training_pb2.LearnerStatus:
    """What the learner says of itself."""
    with grpc.insecure_channel(learner) as channel:
        stub = training_pb2_grpc.OperatorStub(channel)
        return stub.GetStatus(training_pb2.GetStatusRequest(), timeout=timeout_s)


def _updates(learner: str) -> int:
    time.sleep(REPORTED_AFTER_S)
    return int(status(learner).trainer.updates)


class LivePupil:
    """Asked and taught through the SDK."""

    def __init__(
        self, bot: turnwise.AsyncClient, task: Task, actions: tuple[str, ...], manner: Manner, lags: Lags
    ) -> None:
        self._bot, self._task, self._actions, self._manner, self._lags = bot, task, actions, manner, lags
        self._talks = [_Talk(bot, manner) for _ in range(manner.open_dialogues)]
        self._now = 0
        self._unrated: deque[tuple[_Talk, float, str | None]] = deque()
        self._examiners = [Examiner(bot, phrase) for phrase in task.phrases]

    async def ask(self, phrase: int) -> int:
        """In the dialogue whose turn it is."""
        self._asked = phrase
        action = await self._talk.act(self._task.phrases[phrase])
        return self._actions.index(action)

    async def learn(self, rating: float, correction: int | None) -> bool:
        """Rates the turn asked last, or with several dialogues the oldest unrated one."""
        self._unrated.append((self._talk, rating, None if correction is None else self._actions[correction]))
        self._now = (self._now + 1) % len(self._talks)
        if len(self._unrated) < len(self._talks):
            return False
        talk, rating, correct = self._unrated.popleft()
        cursor = await talk.rate(rating, correct)
        if cursor and self._manner.waits:
            await self._wait_until_learned(cursor)
        return True

    async def examine(self) -> Sequence[int]:
        """All phrases at once, with mode=evaluate."""
        turns = await asyncio.gather(*(examiner.ask() for examiner in self._examiners))
        return [self._actions.index(turn.action) for turn in turns]

    @property
    def _talk(self) -> "_Talk":
        return self._talks[self._now]

    async def _wait_until_learned(self, cursor: int) -> None:
        began = time.perf_counter()
        while (await self._examiners[self._asked].ask()).learned_through < cursor:
            if time.perf_counter() - began > LEARN_WAIT_S:
                self._lags.timed_out += 1
                return
            await asyncio.sleep(PROBE_EVERY_S)
        self._lags.seconds.append(time.perf_counter() - began)


class _Talk:
    """One dialogue after the other, each of `manner.turns` turns."""

    def __init__(self, bot: turnwise.AsyncClient, manner: Manner) -> None:
        self._bot, self._manner = bot, manner
        self._ratings: list[float] = []

    async def act(self, phrase: str) -> str:
        if not self._ratings:
            self._dialogue = self._bot.dialogue(user="teacher")
        self._turn = await self._dialogue.act(text=phrase)
        return self._turn.action

    async def rate(self, rating: float, correction: str | None) -> int:
        """Gives the verdict, ends the dialogue after its last turn; the journal's position, 0: no lesson."""
        self._ratings.append(rating)
        last = len(self._ratings) == self._manner.turns
        cursor = 0
        if not self._manner.reward_at_end:
            cursor = (await self._turn.reward(rating)).journal_cursor
            if correction is not None:
                cursor = (await self._turn.correct(correction)).journal_cursor
        if last:
            reward = sum(self._ratings) / len(self._ratings) if self._manner.reward_at_end else None
            receipt = await self._dialogue.end(outcome="goodbye", reward=reward)
            cursor = receipt.journal_cursor if self._manner.reward_at_end else cursor
            self._ratings = []
        return cursor


class Examiner:
    """Asks one phrase in dialogues that teach nothing."""

    def __init__(self, bot: turnwise.AsyncClient, phrase: str) -> None:
        self._bot, self._phrase = bot, phrase
        self._turns = 0

    async def ask(self) -> turnwise.AsyncTurn:
        """Its answer now."""
        if self._turns % EXAM_TURNS == 0:
            self._dialogue = self._bot.dialogue(user="examiner", mode="evaluate")
        self._turns += 1
        return await self._dialogue.act(text=self._phrase)
