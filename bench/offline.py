"""A pupil that is the trainer's classes alone: assembler, replay, pacing and algorithm, no service, no actor.

For quick research: it takes the same course as the live one, but it is not what the benchmark reports. Facts
are those that an actor would send; the policy acts on numpy, as an actor's does.
"""

import asyncio
import itertools
import logging
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from course import Course, Task, take
from live import Manner, write_domain
from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.policy import Domain, Encoder, Network, RawObservation, greedy, mix
from turnwise_learner.journal import KINDS, Row
from turnwise_learner.trainer.algorithm import TurnwiseDQN, TurnwiseDQNConfig
from turnwise_learner.trainer.assembler import Assembler
from turnwise_learner.trainer.ray_cluster import start_ray
from turnwise_learner.trainer.turns import Change


def teach_offline(task: Task, manner: Manner, threshold: float, most: int) -> Course:
    """The whole course, in this process."""
    if not ray.is_initialized():
        logging.getLogger("ray").setLevel(logging.ERROR)
        start_ray()
    with tempfile.TemporaryDirectory(prefix="turnwise-lessons-") as folder:
        domain = Domain.load(write_domain(manner, Path(folder)))
    torch.manual_seed(task.seed)
    pupil = OfflinePupil(task, manner, domain)
    try:
        return asyncio.run(take(task, pupil, threshold, most))
    finally:
        pupil.algorithm.stop()


class MemoryFeed:
    """A journal in memory, folded as it grows."""

    journal_id = "memory"

    def __init__(self, domain: Domain) -> None:
        self._assembler = Assembler(domain, self._of_dialogues, lambda fingerprint: None)
        self._rows: list[Row] = []

    def add(self, dialogue_id: str, **kind: Any) -> None:
        """One fact."""
        seq = len(self._rows) + 1
        fact = training_pb2.Fact(key=str(seq), dialogue_id=dialogue_id, time_ms=seq, **kind)
        name = fact.WhichOneof("kind") or ""
        self._rows.append(Row(seq, dialogue_id, KINDS[name], seq, fact, ""))

    def read(self, cursor: int, wait_s: float, most: int) -> list[Change]:
        """All changes after the cursor; never waits."""
        return self._assembler.assemble(self._rows[cursor:])

    def _of_dialogues(self, dialogue_ids: Collection[str], through: int) -> list[Row]:
        return [row for row in self._rows[:through] if row.dialogue_id in dialogue_ids]


class OfflinePupil:
    """Acts with the network in training; every fact is followed by the updates that it grants."""

    def __init__(self, task: Task, manner: Manner, domain: Domain) -> None:
        if manner.open_dialogues != 1:
            raise ValueError("offline, dialogues cannot be interleaved: nothing is learned meanwhile")
        self._task, self._manner, self._domain = task, manner, domain
        encoder = Encoder(domain)
        raw = [RawObservation(text=phrase, slots={}, features=None) for phrase in task.phrases]
        self._observations = np.stack([encoder.encode(one) for one in raw])
        self._rng = np.random.default_rng([task.seed, 1])
        self._feed = MemoryFeed(domain)
        self.algorithm = TurnwiseDQN(config=TurnwiseDQNConfig.for_domain(domain))
        self.algorithm.env_runner.attach(self._feed)
        self._network = self._present_network()
        self._numbers = itertools.count(1)
        self._decision = ""
        self._ratings: list[float] = []

    async def ask(self, phrase: int) -> int:
        """As an actor decides in mode teach, ties at random."""
        number = next(self._numbers)
        if not self._ratings:
            self._dialogue, self._decision = f"dialogue-{number}", ""
        probabilities = greedy(self._network.q_values(self._observations[phrase]), self._all)
        probabilities = mix(probabilities, self._all, self._manner.epsilon).astype(np.float64)
        action = int(self._rng.choice(len(probabilities), p=probabilities / probabilities.sum()))
        parent, self._decision = self._decision, f"decision-{number}"
        decided = training_pb2.Decided(
            decision_id=self._decision,
            parent_id=parent,
            index=len(self._ratings),
            observation=dialogue_pb2.Observation(text=self._task.phrases[phrase]),
            action=self._domain.action_ids[action],
            domain_fingerprint=self._domain.fingerprint,
            mode=dialogue_pb2.TEACH,
            recorded=True,
        )
        self._feed.add(self._dialogue, decided=decided)
        return action

    async def learn(self, rating: float, correction: int | None) -> bool:
        """The facts of the verdict, of the end after the last turn, and their updates."""
        self._ratings.append(rating)
        if not self._manner.reward_at_end:
            self._say(self._decision, reward=rating)
            if correction is not None:
                self._say(self._decision, correction=self._domain.action_ids[correction])
        if len(self._ratings) == self._manner.turns:
            ended = training_pb2.Ended(decision_id=self._decision, outcome="goodbye", terminated=True)
            self._feed.add(self._dialogue, ended=ended)
            if self._manner.reward_at_end:
                self._say("", reward=sum(self._ratings) / len(self._ratings))
            self._ratings = []
        self._train()
        return True

    async def examine(self) -> Sequence[int]:
        """Greedy answers to all phrases."""
        answers: list[int] = self._network.q_values(self._observations).argmax(1).tolist()
        return answers

    @property
    def _all(self) -> Any:
        return np.ones(len(self._domain.action_ids), bool)

    def _say(self, decision_id: str, **kind: Any) -> None:
        number = next(self._numbers)
        feedback = training_pb2.Feedback(
            feedback_id=str(number), decision_id=decision_id, teacher="teacher", revision=number, **kind
        )
        self._feed.add(self._dialogue, feedback=feedback)

    def _train(self) -> None:
        """Until nothing is owed, or nothing can be learned yet."""
        before = -1
        while self.algorithm.learner.updates != before:
            before = self.algorithm.learner.updates
            self.algorithm.training_step()
        self._network = self._present_network()

    def _present_network(self) -> Network:
        module = self.algorithm.module
        return Network(module.spec, module.policy_parameters())
