"""`turnwise simulate`: many people at once, who know what would have been right."""

import asyncio
import contextlib
import hashlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

import turnwise
from turnwise_actor.access.client_access import ClientAccess
from turnwise_cli.access import access_options, client

_WORDS = (
    "please", "ticket", "today", "friday", "price", "refund", "open", "seat", "hello", "change", "size",
    "where", "when", "help", "thanks", "order", "late", "two", "never", "again", "human", "show", "station",
)  # fmt: skip
_SHOW_EVERY_S = 0.5
_PAUSE_AFTER_ERROR_S = 0.2
_MAX_TURNS = 5


@click.command(short_help="Let simulated people talk to the bot and rate it.")
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@click.option("--dialogues", type=click.IntRange(min=1), default=100, show_default=True, help="In all.")
@click.option(
    "--at-once", type=click.IntRange(min=1), default=10, show_default=True, help="Dialogues open at a time."
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Turns a second over all dialogues; 0: as fast as the answers come.",
)
@click.option(
    "--rated", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="Share of the turns rated."
)
@click.option("--phrases", type=click.IntRange(min=1), default=50, show_default=True, help="How many.")
@click.option("--mode", type=click.Choice(["teach", "serve", "evaluate"]), default="teach", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@access_options
def command(
    addresses: tuple[str, ...],
    dialogues: int,
    at_once: int,
    rate: float,
    rated: float,
    phrases: int,
    mode: str,
    seed: int,
    access: ClientAccess,
) -> int:
    """Let simulated people talk to the bot at ADDRESS (default localhost:50051) and rate it.

    They say phrases made up from the seed; each phrase has one right action, made up too: best reward if
    the bot takes it, worst if not. This teaches the bot nonsense, so not the bot that serves people.
    Prints one JSON line at the end; exit code 1 if there were errors.
    """
    where = list(addresses) or ["localhost:50051"]
    crowd = Crowd(dialogues, rate, rated, phrases, mode, seed)
    return asyncio.run(_run(crowd, where, access, at_once))


@dataclass
class Crowd:
    """The simulated people, and what they met."""

    dialogues: int
    rate: float
    rated: float
    phrases: int
    mode: str
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    act_ms: list[float] = field(default_factory=list)
    feedback_ms: list[float] = field(default_factory=list)
    recent: list[bool] = field(default_factory=list)
    """Of every rating: was the answer right?"""
    version: str = ""
    began: float = field(default_factory=time.monotonic)
    _begun: int = 0
    _next_turn: float = 0.0

    async def person(self, bot: turnwise.AsyncClient, domain: turnwise.Domain) -> None:
        """Takes up one dialogue after the other until all are done."""
        while self._begun < self.dialogues:
            self._begun += 1
            number = self._begun
            try:
                await self._dialogue(bot, domain, random.Random(f"{self.seed}:{number}"))
                self.counts["dialogues"] += 1
            except turnwise.TurnwiseError as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(_PAUSE_AFTER_ERROR_S)

    async def _dialogue(
        self, bot: turnwise.AsyncClient, domain: turnwise.Domain, chance: random.Random
    ) -> None:
        async with bot.dialogue(user=f"simulated-{chance.randrange(1000)}", mode=self.mode) as talk:
            for _ in range(chance.randint(1, _MAX_TURNS)):
                await self._pace()
                number = chance.randrange(self.phrases)
                began = time.monotonic()
                turn = await talk.act(**self._seen(number, domain))
                self.act_ms.append((time.monotonic() - began) * 1000)
                self.counts["turns"] += 1
                self.version = str(turn.policy_version)
                if chance.random() < self.rated:
                    right = turn.action == self._right_action(number, domain)
                    began = time.monotonic()
                    await turn.reward(domain.reward_max if right else domain.reward_min)
                    self.feedback_ms.append((time.monotonic() - began) * 1000)
                    self.recent.append(right)
                    self.counts["ratings"] += 1
            await talk.end(outcome="goodbye")

    async def _pace(self) -> None:
        if self.rate:
            now = time.monotonic()
            self._next_turn = max(self._next_turn + 1 / self.rate, now)
            await asyncio.sleep(self._next_turn - now)

    def _seen(self, number: int, domain: turnwise.Domain) -> dict[str, Any]:
        chance = random.Random(f"{self.seed}:phrase:{number}")
        seen: dict[str, Any] = {}
        if domain.text:
            seen["text"] = " ".join(chance.choices(_WORDS, k=4))
        slots: dict[str, str | float | bool] = {}
        for slot in domain.slots.values():
            if slot.type == "category":
                slots[slot.name] = chance.choice(slot.categories)
            elif slot.type == "number":
                slots[slot.name] = chance.uniform(slot.min, slot.max)
            else:
                slots[slot.name] = chance.random() < 0.5
        if domain.features:
            seen["features"] = [chance.gauss(0, 1) for _ in range(domain.features)]
        return seen | {"slots": slots}

    def _right_action(self, number: int, domain: turnwise.Domain) -> str:
        digest = hashlib.blake2b(f"{self.seed}:truth:{number}".encode(), digest_size=8).digest()
        return list(domain.actions)[int.from_bytes(digest, "big") % len(domain.actions)]

    def summary(self) -> dict[str, object]:
        """What is printed at the end."""
        seconds = time.monotonic() - self.began
        recent = self.recent[-200:]
        return {
            "dialogues": self.counts["dialogues"],
            "turns": self.counts["turns"],
            "ratings": self.counts["ratings"],
            "seconds": round(seconds, 3),
            "turns_per_s": round(self.counts["turns"] / seconds, 1),
            "act_ms": _quantiles(self.act_ms),
            "feedback_ms": _quantiles(self.feedback_ms),
            "right_last_200": round(sum(recent) / len(recent), 3) if recent else None,
            "policy_version": self.version,
            "errors": dict(self.errors),
        }


async def _run(crowd: Crowd, addresses: list[str], access: ClientAccess, at_once: int) -> int:
    console = Console(stderr=True)
    async with client(addresses, access) as bot:
        try:
            domain = await bot.domain()
        except turnwise.TurnwiseError as error:
            message = (
                f"no actor answers at {', '.join(addresses)}; is `turnwise up` running? ({error.message})"
            )
            raise click.ClickException(message) from error
        crowd.began = time.monotonic()
        people = [asyncio.create_task(crowd.person(bot, domain)) for _ in range(at_once)]
        shown = Live(console=console, auto_refresh=False, transient=True)
        with shown if console.is_terminal else contextlib.nullcontext():
            while not all(person.done() for person in people):
                await asyncio.wait(people, timeout=_SHOW_EVERY_S)
                if console.is_terminal:
                    shown.update(_table(crowd.summary()), refresh=True)
        for person in people:
            person.result()
    click.echo(json.dumps(crowd.summary()))
    return 1 if crowd.errors else 0


def _table(summary: dict[str, object]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in summary.items():
        table.add_row(name.replace("_", " "), json.dumps(value))
    return table


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        f"p{percent}": round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 2)
        for percent in (50, 99)
        if ordered
    }
