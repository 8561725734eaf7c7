"""`turnwise simulate`: many people at once, who know what would have been right."""

import asyncio
import hashlib
import json
import math
import random
import signal
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

import turnwise
from turnwise_actor.access.client_access import ClientAccess
from turnwise_cli.access import access_options, client
from turnwise_cli.latencies import Latencies
from turnwise_deploy.local import DeploymentError, LocalConfig, LocalDeployment

_WORDS = (
    "please", "ticket", "today", "friday", "price", "refund", "open", "seat", "hello", "change", "size",
    "where", "when", "help", "thanks", "order", "late", "two", "never", "again", "human", "show", "station",
)  # fmt: skip
_SHOW_EVERY_S = 0.5
_PAUSE_AFTER_ERROR_S = 0.2
_MAX_TURNS = 5


@click.command(short_help="Let simulated people talk to the bot and rate it.")
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@click.option(
    "--domain",
    "domain_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Start a bot of its own with this domain file, and leave nothing of it behind.",
)
@click.option(
    "--dialogues", type=click.IntRange(min=1), help="In all.  [default: 100; with --duration: no limit]"
)
@click.option(
    "--duration", type=click.FloatRange(min=0, min_open=True), help="Seconds after which no dialogue begins."
)
@click.option(
    "--at-once",
    type=click.IntRange(min=1),
    help="Dialogues open at a time.  [default: 10; with --rate: half of it if that is more]",
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
@click.option(
    "--summary",
    "summary_file",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write all figures there as JSON, with the latencies' whole distributions.",
)
@access_options
def command(
    addresses: tuple[str, ...],
    domain_file: Path | None,
    dialogues: int | None,
    duration: float | None,
    at_once: int | None,
    summary_file: Path | None,
    access: ClientAccess,
    **habits: Any,
) -> int:
    """Let simulated people talk to the bot at ADDRESS (default localhost:50051) and rate it.

    An ADDRESS is an actor's HOST:PORT, dns:///NAME:PORT for all actors of a name, or learner://HOST:PORT for
    those of a learner.

    They say phrases made up from the seed; each phrase has one right action, made up too: best reward if
    the bot takes it, worst if not. This teaches the bot nonsense, so not the bot that serves people; --domain
    starts one for the run.

    With --rate, turns are due at even distances whatever the bot does, and a latency counts from when the
    turn was due: a bot that stands still for a second shows a second, not one slow turn.

    Rates, latencies and errors are shown meanwhile; one JSON line is printed at the end. Ctrl-C lets the open
    dialogues end first. Exit code 1 if there were errors.
    """
    if domain_file and addresses:
        raise click.UsageError("give either --domain or the ADDRESS of a bot that runs")
    if dialogues is None and duration is None:
        dialogues = 100
    crowd = Crowd(dialogues, duration, **habits)
    at_once = at_once or max(10, math.ceil(crowd.rate / 2))
    with _own_bot(domain_file) if domain_file else nullcontext(addresses or ("localhost:50051",)) as where:
        asyncio.run(_run(crowd, list(where), access, at_once))
    click.echo(json.dumps(crowd.summary()))
    if summary_file:
        summary_file.write_text(json.dumps(crowd.summary(whole=True), indent=1) + "\n")
    return 1 if crowd.errors else 0


@contextmanager
def _own_bot(domain_file: Path) -> Iterator[tuple[str, ...]]:
    with tempfile.TemporaryDirectory(prefix="turnwise-simulate-") as folder:
        config = LocalConfig(domain_file, Path(folder), port=0, learner_port=0)
        try:
            with LocalDeployment(config, say=_say) as bot:
                yield bot.actors
        except DeploymentError as error:
            raise click.ClickException(str(error)) from error


def _say(line: str) -> None:
    click.echo(f"turnwise: {line}", err=True)


@dataclass
class Crowd:
    """The simulated people, and what they met."""

    dialogues: int | None
    """None: no limit."""
    duration: float | None
    """Seconds; None: no limit."""
    rate: float
    rated: float
    phrases: int
    mode: str
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    act: Latencies = field(default_factory=Latencies)
    feedback: Latencies = field(default_factory=Latencies)
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=200))
    """Of the newest ratings: was the answer right?"""
    version: str = ""
    stopping: bool = False
    """No further dialogue begins."""
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    _begun: int = 0
    _slots: int = 0
    """Turns that have been due so far."""

    async def person(self, bot: turnwise.AsyncClient, domain: turnwise.Domain) -> None:
        """Takes up one dialogue after the other until all are done."""
        while not self._done():
            self._begun += 1
            number = self._begun
            try:
                await self._dialogue(bot, domain, random.Random(f"{self.seed}:{number}"))
                self.counts["dialogues"] += 1
            except turnwise.TurnwiseError as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(_PAUSE_AFTER_ERROR_S)

    def _done(self) -> bool:
        late = self.duration is not None and time.monotonic() - self.began >= self.duration
        return self.stopping or late or (self.dialogues is not None and self._begun >= self.dialogues)

    async def _dialogue(
        self, bot: turnwise.AsyncClient, domain: turnwise.Domain, chance: random.Random
    ) -> None:
        async with bot.dialogue(user=f"simulated-{chance.randrange(1000)}", mode=self.mode) as talk:
            for _ in range(chance.randint(1, _MAX_TURNS)):
                number = chance.randrange(self.phrases)
                seen = self._seen(number, domain)
                due = await self._until_due()
                turn = await talk.act(**seen)
                self.act.add(time.monotonic() - due)
                self.counts["turns"] += 1
                self.version = str(turn.policy_version)
                if chance.random() < self.rated:
                    right = turn.action == self._right_action(number, domain)
                    began = time.monotonic()
                    await turn.reward(domain.reward_max if right else domain.reward_min)
                    self.feedback.add(time.monotonic() - began)
                    self.recent.append(right)
                    self.counts["ratings"] += 1
            await talk.end(outcome="goodbye")

    async def _until_due(self) -> float:
        """Waits for the next free place in the rate; when that was."""
        if not self.rate:
            return time.monotonic()
        due = self.began + self._slots / self.rate
        self._slots += 1
        await asyncio.sleep(due - time.monotonic())
        return due

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

    def summary(self, whole: bool = False) -> dict[str, object]:
        """What is printed at the end; `whole`: with the latencies' distributions."""
        seconds = (self.ended or time.monotonic()) - self.began
        recent = self.recent
        told: dict[str, object] = {
            "dialogues": self.counts["dialogues"],
            "turns": self.counts["turns"],
            "ratings": self.counts["ratings"],
            "seconds": round(seconds, 3),
            "turns_per_s": round(self.counts["turns"] / seconds, 1),
            "act_ms": self.act.summary(),
            "feedback_ms": self.feedback.summary(),
            "right_last_200": round(sum(recent) / len(recent), 3) if recent else None,
            "policy_version": self.version,
            "errors": dict(self.errors),
        }
        if whole:
            told["act_distribution"] = self.act.distribution()
            told["feedback_distribution"] = self.feedback.distribution()
        return told


async def _run(crowd: Crowd, addresses: list[str], access: ClientAccess, at_once: int) -> None:
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
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, partial(_stop, crowd))
        people = [asyncio.create_task(crowd.person(bot, domain)) for _ in range(at_once)]
        shown = Live(console=console, auto_refresh=False, transient=True)
        rate = _Rate()
        with shown if console.is_terminal else nullcontext():
            while not all(person.done() for person in people):
                await asyncio.wait(people, timeout=_SHOW_EVERY_S)
                if console.is_terminal:
                    shown.update(_table(crowd.summary(), rate(crowd.counts["turns"])), refresh=True)
        for person in people:
            person.result()
        crowd.ended = time.monotonic()


def _stop(crowd: Crowd) -> None:
    """The first Ctrl-C; the next one ends it at once."""
    crowd.stopping = True
    asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
    _say("the open dialogues end; Ctrl-C again ends at once")


class _Rate:
    """Increase a second since the look before."""

    def __init__(self) -> None:
        self._at, self._value = time.monotonic(), 0

    def __call__(self, value: int) -> float:
        now = time.monotonic()
        rate = (value - self._value) / max(now - self._at, 1e-9)
        self._at, self._value = now, value
        return rate


def _table(summary: dict[str, object], turns_per_s_now: float) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in summary.items():
        if name == "turns_per_s":
            table.add_row("turns per s", f"{turns_per_s_now:.0f} now, {value} on average")
        elif isinstance(value, dict):
            words = "  ".join(f"{key} [bold]{each}[/]" for key, each in value.items())
            table.add_row(name.replace("_", " "), words or "none")
        else:
            table.add_row(name.replace("_", " "), str(value))
    return table
