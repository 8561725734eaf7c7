"""How soon the bot acts on a "no": from `turn.reward(-1)` returning to another greedy answer at 8 actors.

The quickstart's bot with everything at its default, as `turnwise up --actors 8` starts it, and one teacher.
In each round a phrase that nobody has said before is answered; the answer, greedy at every actor, is rated
-1. Then the actors are asked with `mode="evaluate"`, each over a connection of its own, until at every one of
them the rated action has no longer the highest value: ties are drawn anew by every policy version, so another
answer alone would prove nothing. One actor is asked every 5 ms; once it answers otherwise, all others are
asked at the same time, and so on with those that do not yet. The next round begins when all is learned and
every actor has it.

Where the time goes, by the one clock of the machine: `journal`, what `reward()` itself took, before the clock
starts; `learn`, until the policy's file is written: reading the fact, the updates and writing cannot be told
apart from outside, as the trainer reports only every 0.2 s; `publish`, until the first actor has the policy
in force, by its log; `swap`, until the last one has; `answer`, until the last other answer is here. A file's
time has a grain of some milliseconds, and the trainer may be done before the receipt is back: `learn` may
come out below 0.

`--short`: about a minute.
"""

import argparse
import asyncio
import contextlib
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import turnwise
from live import PROBE_EVERY_S, QUICKSTART, Examiner
from report import Report, quantiles, say, spread
from turnwise import PolicyVersion
from turnwise_deploy.local import DeploymentError, LocalConfig, LocalDeployment

GOALS = {"median_ms": 250.0}
ACTORS = 8
WARM_UP = 3
PATIENCE_S = 10.0
"""A round that takes longer counts as one that never flips."""
NEVER_MS = 1e9
"""More than any other round has, and a number in JSON too."""
QUIET_S = 0.1
"""Before a round: longer than the trainer lets pass between two policies."""
_IN_FORCE = re.compile(
    r"^(\S+ \S+) INFO turnwise_actor\.weights: policy (\d+)\.(\d+) is in force", re.MULTILINE
)


@dataclass(frozen=True)
class Asked:
    """An actor's answer."""

    turn: turnwise.AsyncTurn
    at_s: float
    """When it was here, by the machine's clock."""


@dataclass
class Round:
    """One reaction; times by the machine's clock."""

    journal_ms: float
    rated_at_s: float
    flipped_at_s: float | None
    """None: never."""
    version: PolicyVersion | None = None
    """The oldest policy that answered otherwise."""
    asked: int = 0
    stages_ms: dict[str, float] = field(default_factory=dict)

    @property
    def total_ms(self) -> float:
        """From the receipt to the last other answer."""
        return NEVER_MS if self.flipped_at_s is None else 1000 * (self.flipped_at_s - self.rated_at_s)


def is_greedy(values: Mapping[str, float], action: str) -> bool:
    """Whether no action has a higher value."""
    return values[action] >= max(values.values())


def in_force(log: str) -> list[tuple[PolicyVersion, float]]:
    """Policies and when they came into force, by an actor's log."""
    return [
        (
            PolicyVersion(int(generation), int(number)),
            datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp(),
        )
        for at, generation, number in _IN_FORCE.findall(log)
    ]


def first_since(versions: Sequence[tuple[PolicyVersion, float]], version: PolicyVersion) -> float:
    """When a version or, where that was skipped, a later one came into force.

    Raises:
        ValueError: None did.
    """
    return min(at for each, at in versions if each >= version)


def stages(one: Round, written_s: float, swapped_s: Sequence[float]) -> dict[str, float]:
    """Where the time of a round went, milliseconds; see the module."""
    assert one.flipped_at_s is not None
    marks = (one.rated_at_s, written_s, min(swapped_s), max(swapped_s), one.flipped_at_s)
    names = ("learn", "publish", "swap", "answer")
    return {name: 1000 * (marks[i + 1] - marks[i]) for i, name in enumerate(names)}


@dataclass
class Lesson:
    """A teacher and eight actors."""

    up: LocalDeployment
    data: Path
    bots: Sequence[turnwise.AsyncClient]
    chance: random.Random
    _cursor: int = 0
    """The journal's position of the last rating."""

    async def round(self, number: int) -> Round:
        """One "no"; a teacher at each actor in turn."""
        bot = self.bots[number % len(self.bots)]
        phrase = "".join(self.chance.choices("abcdefghijklmnopqrstuvwxyz ", k=24)).strip()
        examiners = [Examiner(each, phrase) for each in self.bots]
        await self._settle(examiners)
        async with bot.dialogue(user="teacher") as talk:
            turn = await talk.act(text=phrase)
            await self._check(examiners, turn.action)
            began = time.time()
            receipt = await turn.reward(-1)
            rated_at = time.time()
            self._cursor = receipt.journal_cursor
            one = Round(1000 * (rated_at - began), rated_at, None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._until_flipped(one, examiners, turn.action)
        if one.version is not None and one.flipped_at_s is not None:
            one.stages_ms = await asyncio.to_thread(self._stages, one, one.version)
        return one

    async def _until_flipped(self, one: Round, examiners: Sequence[Examiner], action: str) -> None:
        waiting = list(examiners)
        flips: list[Asked] = []
        while waiting:
            first = await _ask(waiting[0])
            one.asked += 1
            if is_greedy(first.turn.q_values, action):
                await asyncio.sleep(PROBE_EVERY_S)
                continue
            others = await asyncio.gather(*map(_ask, waiting[1:]))
            one.asked += len(others)
            flips += [each for each in (first, *others) if not is_greedy(each.turn.q_values, action)]
            waiting = [
                examiner
                for examiner, each in zip(waiting[1:], others, strict=True)
                if is_greedy(each.turn.q_values, action)
            ]
        one.flipped_at_s = max(each.at_s for each in flips)
        one.version = min(each.turn.policy_version for each in flips)

    async def _settle(self, examiners: Sequence[Examiner]) -> None:
        """Waits until all actors have one policy, which has learned everything, and for a quiet moment after.

        Raises:
            DeploymentError: It does not come to that.
        """
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            turns = [asked.turn for asked in await asyncio.gather(*map(_ask, examiners))]
            await asyncio.sleep(QUIET_S)
            if len({turn.policy_version for turn in turns}) == 1 and turns[0].learned_through >= self._cursor:
                return
        raise DeploymentError(f"the actors do not come to one policy within {PATIENCE_S:.0f} s")

    async def _check(self, examiners: Sequence[Examiner], action: str) -> None:
        asked = await asyncio.gather(*map(_ask, examiners))
        if not all(is_greedy(each.turn.q_values, action) for each in asked):
            raise DeploymentError(f"{action} is not the greedy answer of every actor")

    def _stages(self, one: Round, version: PolicyVersion) -> dict[str, float]:
        written = (self.data / "policies" / f"{version}.safetensors").stat().st_mtime_ns / 1e9
        logs = (self.data / "logs" / f"actor-{actor.rpartition(':')[2]}.log" for actor in self.up.actors)
        return stages(one, written, [first_since(in_force(log.read_text()), version) for log in logs])


async def _ask(examiner: Examiner) -> Asked:
    turn = await examiner.ask()
    return Asked(turn, time.time())


async def measure(up: LocalDeployment, data: Path, rounds: int, seed: int) -> Report:
    """All rounds; the first few are not counted."""
    async with AsyncExitStack() as stack:
        bots = [await stack.enter_async_context(turnwise.AsyncClient(actor)) for actor in up.actors]
        lesson = Lesson(up, data, bots, random.Random(seed))
        taken = []
        for number in range(WARM_UP + rounds):
            taken.append(await lesson.round(number))
            say(f"round {number + 1} of {WARM_UP + rounds}: {words(taken[-1])}")
    return report_of(taken[WARM_UP:])


def report_of(taken: Sequence[Round]) -> Report:
    """The last line."""
    flipped = [one for one in taken if one.stages_ms]
    names = flipped[0].stages_ms if flipped else ()
    median = statistics.median(one.total_ms for one in taken)
    figures = {
        "rounds": len(taken),
        "never": sum(one.flipped_at_s is None for one in taken),
        "reaction_ms": quantiles([one.total_ms for one in taken]),
        "spread_ms": spread([one.total_ms for one in taken]),
        "stages_ms": {
            "journal": statistics.median(one.journal_ms for one in taken),
            **{name: statistics.median(one.stages_ms[name] for one in flipped) for name in names},
        },
        "questions_a_round": statistics.median(one.asked for one in taken),
    }
    return Report("reaction", {"median_ms": median}, GOALS, figures, median <= GOALS["median_ms"])


def words(one: Round) -> str:
    """For people."""
    if one.flipped_at_s is None:
        return "it never flipped"
    parts = ", ".join(f"{name} {ms:.0f}" for name, ms in one.stages_ms.items())
    return f"{one.total_ms:.0f} ms after {one.journal_ms:.0f} ({parts})"


def main() -> int:
    """0 when it ran, whatever the figures; 1 when it could not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--short", action="store_true", help="about a minute")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="turnwise-reaction-") as folder:
        data = Path(folder) / "data"
        config = LocalConfig(domain=QUICKSTART, data=data, actors=ACTORS, port=0, learner_port=0)
        try:
            with LocalDeployment(config) as up:
                rounds = 50 if options.short else 300
                report = asyncio.run(measure(up, data, rounds, options.seed))
        except (DeploymentError, OSError, turnwise.TurnwiseError) as error:
            say(f"reaction could not run: {error}")
            return 1
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
