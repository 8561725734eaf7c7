"""Simulated frontends with a log of their own: what they were answered, what was acknowledged, how soon."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import turnwise
from turnwise_actor.access.client_access import ClientAccess

T = TypeVar("T")

PHRASES = tuple(f"phrase number {i}" for i in range(40))
AFTER_ERROR_S = 0.1
TIMEOUT_S = 5.0
AT_ONCE = 256
"""Requests under way; more wait for their turn here, not on a stream that would refuse them."""


@dataclass
class Habits:
    """How people talk."""

    pause_s: float = 0.1
    """They think before the next turn: from nothing to twice this. May be changed while they talk."""
    turns: tuple[int, int] = (1, 6)
    """Of a dialogue, fewest and most."""
    rated: float = 0.5
    """Part of the turns."""


@dataclass
class ClientLog:
    """What the frontends know, to be held against the journal."""

    turns: dict[str, str] = field(default_factory=dict)
    """Decision -> dialogue, of dialogues whose end was acknowledged: all their turns are confirmed."""
    ratings: dict[str, float] = field(default_factory=dict)
    """Decision -> reward, of acknowledged feedback."""
    attempts: Counter[str] = field(default_factory=Counter)
    """Decision -> how often it was rated: again after an error, each time as feedback of its own."""
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

    def add(self, other: "ClientLog") -> None:
        """Takes what other frontends know, or the same later on."""
        for name, own in vars(self).items():
            others = getattr(other, name)
            if isinstance(own, dict):  # Counters add up, by their own `update`
                own.update(others)
            else:
                setattr(self, name, own + others)

    def longest_wait_s(self, since: float, until: float) -> float:
        """Of the turns that somebody waited for in this time."""
        return max((b - a for a, b in self.answers if a < until and b > since), default=0.0)


class Frontends:
    """People who talk until `stop`: one dialogue after the other, some turns rated, each ended in good order.

    A frontend that is given an error tries the same again: it has the dialogue's token, so nothing is lost.

    Args:
        access: What they bring to the actors.
    """

    def __init__(
        self,
        addresses: tuple[str, ...],
        count: int,
        seed: int,
        habits: Habits | None = None,
        access: ClientAccess | None = None,
    ) -> None:
        self.log = ClientLog()
        self.habits = habits or Habits()
        self.open = 0
        """Dialogues that have begun and not ended."""
        self._addresses, self._count, self._seed = addresses, count, seed
        access = access or ClientAccess()
        self._credentials = None if access.token_file is None else access.token
        self._tls = access.channel_credentials()
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Returns when everybody has ended the present dialogue after `stop`."""
        addresses = list(self._addresses)
        async with turnwise.AsyncClient(addresses, self._credentials, self._tls, timeout=TIMEOUT_S) as bot:
            people = (self._person(bot, random.Random(f"{self._seed}:{i}")) for i in range(self._count))
            await asyncio.gather(*people)

    def stop(self) -> None:
        """Everybody ends the present dialogue."""
        self._stopping.set()

    async def _person(self, bot: turnwise.AsyncClient, chance: random.Random) -> None:
        await self._pause(chance)
        while not self._stopping.is_set():
            await self._dialogue(bot, chance)

    async def _dialogue(self, bot: turnwise.AsyncClient, chance: random.Random) -> None:
        talk = bot.dialogue(user=f"person-{chance.randrange(1000)}")
        turns: list[turnwise.AsyncTurn] = []
        for _ in range(chance.randint(*self.habits.turns)):
            turn = await self._turn(talk, chance)
            self.open += not turns
            turns.append(turn)
            await self._pause(chance)
            if chance.random() < self.habits.rated:
                reward = chance.choice((-1.0, 1.0))
                receipt = await self._until_done(partial(self._rate, turn, reward))
                self.log.ratings[turn.decision_id] = reward
                self.log.spooled += receipt.settled == "SPOOLED"
            if self._stopping.is_set():
                break
        await self._until_done(partial(talk.end, outcome="goodbye"))
        self.open -= 1
        self.log.dialogues += 1
        self.log.turns |= {turn.decision_id: talk.id for turn in turns}

    async def _rate(self, turn: turnwise.AsyncTurn, reward: float) -> turnwise.Receipt:
        self.log.attempts[turn.decision_id] += 1
        return await turn.reward(reward)

    async def _turn(self, talk: turnwise.AsyncDialogue, chance: random.Random) -> turnwise.AsyncTurn:
        began = time.monotonic()
        turn = await self._until_done(partial(talk.act, text=chance.choice(PHRASES)))
        self.log.answers.append((began, time.monotonic()))
        return turn

    async def _pause(self, chance: random.Random) -> None:
        """Thinks; not any longer once all are to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), chance.random() * 2 * self.habits.pause_s)

    async def _until_done(self, attempt: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                async with self._at_once:
                    return await attempt()
            except turnwise.TurnwiseError as error:
                self.log.errors[type(error).__name__] += 1
            except Exception as error:  # noqa: BLE001 - the point is to find these
                self.log.undocumented.append(repr(error))
            await asyncio.sleep(AFTER_ERROR_S)
