"""Simulated frontends with a log of their own: what they were answered, what was acknowledged, how soon."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import turnwise

T = TypeVar("T")

PHRASES = tuple(f"phrase number {i}" for i in range(40))
PAUSE_S = 0.1
"""A person thinks."""
AFTER_ERROR_S = 0.1
TIMEOUT_S = 5.0


@dataclass
class ClientLog:
    """What the frontends know, to be held against the journal."""

    turns: dict[str, str] = field(default_factory=dict)
    """Decision -> dialogue, of dialogues whose end was acknowledged: all their turns are confirmed."""
    ratings: dict[str, float] = field(default_factory=dict)
    """Decision -> reward, of acknowledged feedback."""
    dialogues: int = 0
    """Dialogues whose end was acknowledged."""
    spooled: int = 0
    """Acknowledgements from an actor's spool."""
    errors: Counter[str] = field(default_factory=Counter)
    """Documented errors that the SDK gave up with; the frontend tried again."""
    undocumented: list[str] = field(default_factory=list)
    """Anything else that was raised."""
    answers: list[tuple[float, float]] = field(default_factory=list)
    """Asked and answered, in monotonic seconds; retries included."""

    def longest_wait_s(self, since: float, until: float) -> float:
        """Of the turns that somebody waited for in this time."""
        return max((b - a for a, b in self.answers if a < until and b > since), default=0.0)


class Frontends:
    """People who talk until `stop`: dialogues of some turns, half of them rated, each ended in good order.

    A frontend that is given an error tries the same again: it has the dialogue's token, so nothing is lost.
    """

    def __init__(self, addresses: tuple[str, ...], count: int, seed: int) -> None:
        self.log = ClientLog()
        self._addresses, self._count, self._seed = addresses, count, seed
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Returns when everybody has ended the last dialogue after `stop`."""
        async with turnwise.AsyncClient(list(self._addresses), timeout=TIMEOUT_S) as bot:
            people = (self._person(bot, random.Random(f"{self._seed}:{i}")) for i in range(self._count))
            await asyncio.gather(*people)

    def stop(self) -> None:
        """Everybody ends the present dialogue."""
        self._stopping.set()

    async def _person(self, bot: turnwise.AsyncClient, chance: random.Random) -> None:
        while not self._stopping.is_set():
            await self._dialogue(bot, chance)

    async def _dialogue(self, bot: turnwise.AsyncClient, chance: random.Random) -> None:
        talk = bot.dialogue(user=f"person-{chance.randrange(1000)}")
        turns = []
        for _ in range(chance.randint(1, 6)):
            began = time.monotonic()
            turn = await self._until_done(partial(talk.act, text=chance.choice(PHRASES)))
            self.log.answers.append((began, time.monotonic()))
            turns.append(turn)
            await asyncio.sleep(chance.random() * 2 * PAUSE_S)
            if chance.random() < 0.5:
                reward = chance.choice((-1.0, 1.0))
                receipt = await self._until_done(partial(turn.reward, reward))
                self.log.ratings[turn.decision_id] = reward
                self.log.spooled += receipt.settled == "SPOOLED"
        await self._until_done(partial(talk.end, outcome="goodbye"))
        self.log.dialogues += 1
        self.log.turns |= {turn.decision_id: talk.id for turn in turns}

    async def _until_done(self, attempt: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await attempt()
            except turnwise.TurnwiseError as error:
                self.log.errors[type(error).__name__] += 1
            except Exception as error:  # noqa: BLE001 - the point is to find these
                self.log.undocumented.append(repr(error))
            await asyncio.sleep(AFTER_ERROR_S)
