"""Teaches the booking bot by simulated calls: first with rules at its side, then by success alone.

    python examples/booking/teach.py                      # warm start of 50 calls, then 600 more
    python examples/booking/teach.py --warm-start 0       # from nothing

Several calls go on at once. Nobody rates or corrects a turn: a booking that holds is +1, anything else -1, at
the end.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from desk import Call
from rules import rule

import turnwise
from turnwise_deploy.local import LocalConfig, LocalDeployment

DOMAIN = Path(__file__).resolve().parent / "domain.yaml"
FRESH = 1_000_000
"""Calls from this number on are for examinations: their people have never been met before."""
LEARN_WAIT_S = 30.0
GOAL = 0.9


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    dialogues: int
    """Calls taught by their success alone."""
    warm_start: int
    """Calls before them in which the rules decide; in every other one they read back before they book."""
    every: int
    """Calls from one examination to the next."""
    exam: int
    """Calls of an examination."""
    at_once: int
    """Calls open at a time."""
    seed: int


def main() -> int:
    """Teaches, and prints the curve."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as data:
        config = LocalConfig(domain=DOMAIN, data=Path(data), port=0, learner_port=0)
        with LocalDeployment(config) as up:
            asyncio.run(run(options, up.actors))
    return 0


def parse_options() -> Options:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dialogues", type=int, default=600, help="calls taught by their success alone")
    parser.add_argument("--warm-start", type=int, default=50, help="calls before, in which the rules decide")
    parser.add_argument("--every", type=int, default=50, help="calls from one examination to the next")
    parser.add_argument("--exam", type=int, default=400, help="calls of an examination")
    parser.add_argument("--at-once", type=int, default=4, help="calls open at a time")
    parser.add_argument("--seed", type=int, default=0)
    return Options(**vars(parser.parse_args()))


async def run(options: Options, actors: tuple[str, ...]) -> None:
    """The whole lesson."""
    everybody = range(FRESH, FRESH + options.exam)
    chance = random.Random(options.seed)
    report("random", success_of(lambda call: chance.choice(call.allowed()), everybody))
    report("rules", success_of(lambda call: rule(call.seen()), everybody))
    report("rules that read back", success_of(lambda call: rule(call.seen(), reads_back=True), everybody))
    async with turnwise.AsyncClient(actors) as bot:
        school = School(bot, options.at_once, options.seed)
        await school.each(range(options.warm_start), school.with_rules)
        report(f"{options.warm_start} calls with the rules", await school.examine(everybody))
        met = options.warm_start
        curve: dict[int, float] = {}
        for done in range(0, options.dialogues, options.every):
            some = min(options.every, options.dialogues - done)
            await school.each(range(met, met + some), school.by_success)
            met += some
            curve[done + some] = await school.examine(everybody)
            report(f"{done + some} calls by success alone", curve[done + some])
    print(f"calls to {100 * GOAL:.0f} %: {calls_to_goal(curve) or f'not within {options.dialogues}'}")


@dataclass
class School:
    """Makes calls to the bot, several at once."""

    bot: turnwise.AsyncClient
    at_once: int
    seed: int

    async def each(self, numbers: range, talk: Callable[[int], Awaitable[bool]]) -> list[bool]:
        """Has every call of these numbers; whether each succeeded."""
        left = iter(numbers)

        async def line() -> list[bool]:
            return [await talk(number) for number in left]

        lines = await asyncio.gather(*(line() for _ in range(self.at_once)))
        return [success for line in lines for success in line]

    async def with_rules(self, number: int) -> bool:
        """The rules decide what is said; the bot learns from how it went.

        It is not corrected: a correction says that the rules were right, and they often are not.
        """
        call = self._call(number)
        async with self.bot.dialogue(user="rules") as talk:
            while not call.outcome:
                turn = await talk.act(slots=call.seen(), allowed=call.allowed())
                action = rule(call.seen(), reads_back=number % 2 == 1)
                if turn.action != action:
                    await turn.overridden(action)
                call.act(action)
            receipt = await self._end(talk, call)
        await self._wait_until_learned(receipt)
        return call.outcome == "success"

    async def by_success(self, number: int) -> bool:
        """The bot decides, and is told at the end whether the booking holds."""
        call = self._call(number)
        async with self.bot.dialogue(user="caller") as talk:
            while not call.outcome:
                turn = await talk.act(slots=call.seen(), allowed=call.allowed())
                call.act(turn.action)
            receipt = await self._end(talk, call)
        await self._wait_until_learned(receipt)
        return call.outcome == "success"

    async def examine(self, numbers: range) -> float:
        """Share of these calls that succeed. Teaches nothing."""
        succeeded = await self.each(numbers, self._examined)
        return sum(succeeded) / len(succeeded)

    async def _examined(self, number: int) -> bool:
        call = Call(random.Random(number))
        async with self.bot.dialogue(user="examiner", mode="evaluate") as talk:
            while not call.outcome:
                turn = await talk.act(slots=call.seen(), allowed=call.allowed())
                call.act(turn.action)
            await talk.end(outcome=call.outcome)
        return call.outcome == "success"

    def _call(self, number: int) -> Call:
        return Call(random.Random(f"{self.seed}:{number}"))

    async def _end(self, talk: turnwise.AsyncDialogue, call: Call) -> turnwise.Receipt:
        return await talk.end(outcome=call.outcome, reward=+1 if call.outcome == "success" else -1)

    async def _wait_until_learned(self, receipt: turnwise.Receipt) -> None:
        """So that the curve does not depend on the machine; with real people nobody waits."""
        deadline = time.monotonic() + LEARN_WAIT_S
        while await self._learned_through() < receipt.journal_cursor:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no policy has learned the call within {LEARN_WAIT_S:.0f} s")
            await asyncio.sleep(0.02)

    async def _learned_through(self) -> int:
        async with self.bot.dialogue(user="examiner", mode="evaluate") as talk:
            return (await talk.act(slots={"intent": "greet"})).learned_through


def success_of(policy: Callable[[Call], str], numbers: range) -> float:
    """Share of these calls in which a policy of one's own succeeds."""
    succeeded = 0
    for number in numbers:
        call = Call(random.Random(number))
        while not call.outcome:
            call.act(policy(call))
        succeeded += call.outcome == "success"
    return succeeded / len(numbers)


def calls_to_goal(curve: Mapping[int, float]) -> int | None:
    """The first examination that reached the goal, if the next one did too."""
    return next((calls for (calls, now), then in pairwise(curve.items()) if min(now, then[1]) >= GOAL), None)


def report(what: str, success: float) -> None:
    """One line of the curve."""
    print(f"{what:34} {100 * success:3.0f} % {'#' * round(40 * success)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
