"""What a new policy every tenth of a second does to the slow end of the answers' times.

The versions come from the trainer of a live deployment, on the way that all of them take; it publishes one
whenever it is told to explore otherwise, and has nothing to learn meanwhile.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

import turnwise
from loads import observation_row
from open_dialogues import read_by_the_trainer
from report import quantiles
from turnwise.v1 import dialogue_pb2, training_pb2, training_pb2_grpc
from turnwise_deploy.local import LocalDeployment

SWAPS_PER_S = 10.0
DIALOGUES = 32
PAUSE_S = (0.05, 0.15)
"""Between two turns of a dialogue: some 300 turns a second over all."""


@dataclass
class Answers:
    """Of one side: with swaps or without."""

    ms: list[float] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    """Of the policies that answered."""
    seconds: float = 0.0

    def figures(self) -> dict[str, Any]:
        """What is reported."""
        return {
            "turns": len(self.ms),
            "answer_ms": quantiles(self.ms),
            "versions_per_s": len(self.versions) / max(self.seconds, 1e-9),
        }


async def measure_swaps(up: LocalDeployment, rounds: int, seconds: float) -> dict[str, Any]:
    """Slices with and without swaps, in turn; their p99 are compared over all slices of a side."""
    quiet, swapping = Answers(), Answers()
    await read_by_the_trainer(up)
    async with turnwise.AsyncClient(up.actors[0]) as bot:
        await talk(bot, Answers(), 1.0)  # streams and dialogues begin
        for _ in range(rounds):
            await talk(bot, quiet, seconds)
            async with swaps(up.learner):
                await talk(bot, swapping, seconds)
    return {
        "swap_delay_p99_ms": delay_p99_ms(quiet, swapping),
        "quiet": quiet.figures(),
        "swapping": swapping.figures(),
    }


def delay_p99_ms(quiet: Answers, swapping: Answers) -> float:
    """What the swaps have added to it."""
    return quantiles(swapping.ms)["p99"] - quantiles(quiet.ms)["p99"]


async def talk(bot: turnwise.AsyncClient, answers: Answers, seconds: float) -> None:
    """Dialogues that speak now and then."""
    began = time.monotonic()

    async def one(seed: int) -> None:
        rng = random.Random(seed)
        dialogue = bot.dialogue(mode="serve")
        await dialogue.act(features=observation_row(0))  # it begins
        while time.monotonic() < began + seconds:
            await asyncio.sleep(rng.uniform(*PAUSE_S))
            asked = time.perf_counter()
            turn = await dialogue.act(features=observation_row(rng.randrange(64)))
            answers.ms.append(1000 * (time.perf_counter() - asked))
            answers.versions.add(str(turn.policy_version))
        await dialogue.end(outcome="goodbye")

    await asyncio.gather(*map(one, range(DIALOGUES)))
    answers.seconds += time.monotonic() - began


@asynccontextmanager
async def swaps(learner: str) -> AsyncIterator[None]:
    """New versions, until the block is left."""

    async def publish() -> None:
        async with grpc.aio.insecure_channel(learner) as channel:
            operator = training_pb2_grpc.OperatorStub(channel)
            due, number = time.monotonic(), 0
            while True:
                number += 1
                order = training_pb2.SetExplorationRequest(
                    mode=dialogue_pb2.SERVE, epsilon=0.02 + 0.001 * (number % 2)
                )
                await operator.SetExploration(order)
                due += 1 / SWAPS_PER_S
                await asyncio.sleep(due - time.monotonic())

    publishing = asyncio.create_task(publish())
    try:
        yield
    finally:
        publishing.cancel()
        with suppress(asyncio.CancelledError):
            await publishing
