"""What a new policy every tenth of a second does to the slow end of the answers' times.

The versions come from the trainer of a live deployment, on the way that all of them take; it publishes one
whenever it is told to explore otherwise, and has nothing to learn meanwhile. Two actors beside the
deployment's, started alike, are asked in turn: one takes each version; the other's policy is newer than all
that come, so that it is told of none. What the latter's answers wait for is the processor: trainer, service
and other actors work at every version. What the former's wait for beyond that is the swap.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio

import turnwise
from cold_start import fresh_actor
from loads import observation_row
from open_dialogues import read_by_the_trainer
from report import quantiles
from turnwise.v1 import dialogue_pb2, training_pb2, training_pb2_grpc
from turnwise_actor.policy import Domain, PolicyVersion, initial_policy
from turnwise_deploy.local import LocalDeployment

SWAPS_PER_S = 10.0
DIALOGUES = 32
PAUSE_S = (0.05, 0.15)
"""Between two turns of a dialogue: some 300 turns a second over all."""


@dataclass
class Answers:
    """Of one actor, while versions are published or while none are."""

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


async def measure_swaps(up: LocalDeployment, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Slices of each side, in turn; their p99 are compared over all slices of a side."""
    sides = {name: Answers() for name in ("quiet", "swapping", "unmoved_quiet", "unmoved")}
    await read_by_the_trainer(up)
    async with AsyncExitStack() as stack:
        actors = stack.enter_context(two_actors(up, folder))
        moved, still = [await stack.enter_async_context(turnwise.AsyncClient(actor)) for actor in actors]
        for bot in (moved, still):
            await talk(bot, Answers(), 1.0)  # streams and dialogues begin
        for _ in range(rounds):
            await talk(moved, sides["quiet"], seconds)
            await talk(still, sides["unmoved_quiet"], seconds)
            async with swaps(up.learner):
                await talk(moved, sides["swapping"], seconds)
                await talk(still, sides["unmoved"], seconds)
    return delays_p99_ms(sides) | {name: answers.figures() for name, answers in sides.items()}


def delays_p99_ms(sides: Mapping[str, Answers]) -> dict[str, float]:
    """What swaps add to the answers of the actor that swaps, and what publishing adds to all answers."""
    p99 = {name: quantiles(answers.ms)["p99"] for name, answers in sides.items()}
    return {
        "swap_delay_p99_ms": p99["swapping"] - p99["unmoved"],
        "publishing_delay_p99_ms": p99["unmoved"] - p99["unmoved_quiet"],
        "swap_and_publishing_delay_p99_ms": p99["swapping"] - p99["quiet"],
    }


@contextmanager
def two_actors(up: LocalDeployment, folder: Path) -> Iterator[tuple[str, str]]:
    """Addresses of one that swaps and of one that never does."""
    domain = up.config.domain
    newest = replace(initial_policy(Domain.load(domain)), version=PolicyVersion((1 << 32) - 1, 0))
    policy = folder / "newest.safetensors"
    policy.write_bytes(newest.to_bytes())
    initial = folder / "initial.safetensors"
    initial.write_bytes(replace(newest, version=PolicyVersion(0, 0)).to_bytes())
    with (
        fresh_actor(up, domain, up.learner, folder / "moved", "--policy", str(initial)) as (moved, _),
        fresh_actor(up, domain, up.learner, folder / "unmoved", "--policy", str(policy)) as (unmoved, _),
    ):
        yield moved, unmoved


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
