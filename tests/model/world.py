"""Actors, a learner and a clock in one thread: the product's own code, with nothing but its sockets left out.

What stands in is as small as can be: an `Outbox` where the uplink would be (memory that a crash empties,
a disk that survives it, a link that may be cut), and the loop that carries what the env runner hands out
into replay. Tokens, decisions, facts, journal, assembler, env runner and replay are the real ones.
"""

from __future__ import annotations

import asyncio
import base64
import json
import pickle
import sqlite3
from collections.abc import Iterable, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any, cast

from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import training_pb2
from turnwise_actor.config import TokenConfig
from turnwise_actor.dialogues import Dialogues
from turnwise_actor.facts import PackedFact
from turnwise_actor.policy import Domain, Exploration, Policy, PolicyVersion, initial_policy
from turnwise_actor.requests import read_act
from turnwise_actor.spool import SpoolFullError
from turnwise_actor.tokens import KeyRing, Tokens
from turnwise_actor.uplink import Uplink
from turnwise_actor.weights import Policies
from turnwise_learner.journal import JournalReader
from turnwise_learner.service.facts import to_rows
from turnwise_learner.service.journal import Journal
from turnwise_learner.trainer.algorithm import TurnwiseDQNConfig
from turnwise_learner.trainer.env_runner import JournalEnvRunner
from turnwise_learner.trainer.feed import JournalFeed
from turnwise_learner.trainer.replay import ReplayConfig, TurnReplay

ACTIONS = ("greet", "ask", "bye")
IDLE_S = 30 * 60
FEW_FACTS = TokenConfig(max_facts=3)


def make_domain(gamma: float, wait_s: int) -> Domain:
    return Domain.from_mapping(
        {
            "name": "desk",
            "state": {"text": {"encoder": "hashing", "size": 16}},
            "actions": [{"id": name, "say": name} for name in ACTIONS],
            "rewards": {"wait": f"{wait_s}s"},
            "dialogue": {"idle_timeout": f"{IDLE_S}s"},
            "learning": {"gamma": gamma, "hidden": [4]},
        }
    )


@dataclass
class Clock:
    """One time for everybody; it moves only when it is told to."""

    ms: int = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.ms


class Learner:
    """Service and trainer: a real journal, and what is learned from it."""

    def __init__(self, folder: Path, domain: Domain) -> None:
        self.path = folder / "journal.sqlite"
        self.domain = domain
        self.up = True
        self.runner: Any = None
        self.replay: TurnReplay
        self._saved: bytes = b""

    async def start(self) -> None:
        self.journal = Journal(self.path)
        self.up = True
        if self.runner is None:
            self.start_trainer()

    async def stop(self) -> None:
        """What was committed stays; the next start is a new epoch."""
        self.up = False
        await self.journal.close()

    async def append(self, facts: Sequence[PackedFact], actor: str) -> int:
        """Commits facts; their highest position."""
        rows, refused = to_rows([training_pb2.Fact.FromString(fact.body) for fact in facts], actor)
        assert not refused, refused
        return await (await self.journal.append(rows))

    # The trainer, which reads the journal and no more.

    def start_trainer(self) -> None:
        """A new process: from the last checkpoint, or from the first fact."""
        if self.runner is not None:
            self._reader.close()
        self._reader = JournalReader(self.path)
        self.runner = JournalEnvRunner(config=TurnwiseDQNConfig.for_domain(self.domain))
        self.replay = TurnReplay(
            self.runner.config.observation_space.shape[0],
            len(ACTIONS),
            self.domain.gamma,
            self.runner.config.n_step,
            ReplayConfig(capacity_turns=1024),
        )
        if self._saved:
            runner, replay = pickle.loads(self._saved)
            self.runner.set_state(runner)
            self.replay.set_state(replay)
        feed = JournalFeed(self._reader, self.domain, Event())
        # Dialogues are folded again from the journal as often as can be.
        feed._assembler._max_dialogues = 1
        self.runner.attach(feed)

    def checkpoint(self) -> None:
        self._saved = pickle.dumps((self.runner.get_state(), self.replay.get_state()))

    def train(self) -> None:
        """Takes in what the journal has, as TurnwiseDQN does between updates."""
        self.replay.apply_all(self.runner.sample())

    @property
    def counters(self) -> dict[str, int]:
        return dict(self.runner.counters)

    def facts(self) -> list[training_pb2.Fact]:
        """Everything in the journal, read without the product's help."""
        with closing(sqlite3.connect(self.path)) as connection:
            rows = connection.execute("SELECT body FROM facts ORDER BY seq").fetchall()
        return [training_pb2.Fact.FromString(body) for (body,) in rows]

    def reader(self) -> JournalReader:
        return self._reader

    async def close(self) -> None:
        self._reader.close()
        if self.up:
            await self.stop()


@dataclass
class Outbox:
    """Where the uplink would be; facts go when the test says so."""

    learner: Learner
    name: str
    connected: bool = True
    disk_full: bool = False
    pending: dict[str, PackedFact] = field(default_factory=dict)
    disk: list[PackedFact] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)

    @property
    def reaches(self) -> bool:
        return self.connected and self.learner.up

    # What Dialogues asks of an uplink.

    @property
    def can_record(self) -> bool:
        return not self.disk_full or self.reaches

    def add(self, facts: Iterable[PackedFact]) -> list[PackedFact]:
        unsettled = [fact for fact in facts if fact.key not in self.settled]
        for fact in unsettled:
            self.pending.setdefault(fact.key, fact)
        return unsettled

    def known(self) -> tuple[dict[str, PackedFact], Set[str], Set[str]]:
        return self.pending, self.settled, set()

    has_room = True

    def room(self) -> tuple[int, int, int]:
        return 0 if self.disk_full and not self.reaches else 1_000_000, 0, 0

    def took(self, keys: Sequence[str]) -> None:
        """They are among those pending already."""

    def send_on(self, keys: Sequence[str]) -> None:
        """So are they."""

    async def until_settled(self, facts: Sequence[PackedFact], wait_ms: float) -> bool:
        waiting = [fact for fact in facts if fact.key not in self.settled]
        if waiting and self.reaches:
            await self._send(waiting)
        return not waiting or self.reaches

    async def settle(self, facts: Sequence[PackedFact], wait_ms: float | None = None) -> int | None:
        self.settled -= {fact.key for fact in facts}
        self.add(facts)
        if not self.reaches:
            await self.spool(facts)
            return None
        return await self._send(facts)

    async def spool(self, facts: Sequence[PackedFact]) -> None:
        if self.disk_full:
            raise SpoolFullError("the disk is full")
        self.disk += facts
        self.settled |= {fact.key for fact in facts}

    # What the test does.

    async def deliver(self, chosen: Sequence[int], acknowledged: bool) -> None:
        """Sends some of what is held, in the order named; an acknowledgement may be lost on its way back."""
        held = [*self.pending.values(), *self.disk]
        facts = [held[index % len(held)] for index in chosen] if held else []
        if facts and acknowledged:
            await self._send(facts)
        elif facts:
            await self.learner.append(facts, self.name)

    async def deliver_all(self) -> None:
        facts = [*self.disk, *self.pending.values()]
        if facts:
            await self._send(facts)
        self.disk.clear()

    def crash(self) -> None:
        self.pending.clear()
        self.settled.clear()

    async def _send(self, facts: Sequence[PackedFact]) -> int:
        cursor = await self.learner.append(facts, self.name)
        for fact in facts:
            self.pending.pop(fact.key, None)
            self.settled.add(fact.key)
        return cursor


class Actor:
    """One actor process: all it keeps is its outbox and its policies."""

    def __init__(self, name: str, keys: Path, learner: Learner) -> None:
        self.name = name
        self.outbox = Outbox(learner, name)
        self._read_by_protobuf = False
        """Every other request, as those that are not plain are, and all where nothing is compiled."""
        self._keys, self._domain = keys, learner.domain
        self._policy = make_policy(self._domain, 1, 0)
        self.start()

    def start(self) -> None:
        """A new process."""
        tokens = Tokens(KeyRing(self._keys, self._domain.name, clock=lambda: 0.0), self._domain.name)
        self._policies = Policies(self._domain)
        self._policies.install(self._policy)
        self.dialogues = Dialogues(self._domain, tokens, self._policies, cast(Uplink, self.outbox), FEW_FACTS)

    def crash(self) -> None:
        self.outbox.crash()
        self.start()

    def install(self, number: int, favourite: int) -> None:
        self._policy = make_policy(self._domain, number, favourite)
        self._policies.install(self._policy)

    async def answer(self, request: Any) -> Any:
        """As the servicer does it. Raises RequestError."""
        match request:
            case pb.StartDialogueRequest():
                return await self.dialogues.start(request)
            case pb.ActRequest():
                self._read_by_protobuf = not self._read_by_protobuf
                act = request if self._read_by_protobuf else read_act(request.SerializeToString())
                return pb.Turn.FromString(await self.dialogues.act(act))
            case pb.FeedbackRequest():
                return await self.dialogues.give_feedback(request)
            case pb.EndRequest():
                return await self.dialogues.end(request)
        return self.dialogues.description


def make_policy(domain: Domain, number: int, favourite: int) -> Policy:
    blank = initial_policy(domain)
    bias = blank.parameters["head.bias"].copy()
    bias[favourite] = 1.0
    return replace(
        blank,
        version=PolicyVersion(1, number),
        parameters={**blank.parameters, "head.bias": bias},
        exploration=Exploration(teach_epsilon=0.5, serve_epsilon=0.5),
    )


def write_keys(folder: Path) -> Path:
    file = folder / "token-keys.json"
    keys = {"ab12cd34": base64.b64encode(bytes(range(32))).decode()}
    file.write_text(json.dumps({"active": "ab12cd34", "keys": keys}))
    return file


class World:
    """All of it, in a folder of its own."""

    def __init__(self, folder: Path, gamma: float, wait_s: int, actors: int) -> None:
        self.domain = make_domain(gamma, wait_s)
        self.wait_s = wait_s
        self.loop = asyncio.new_event_loop()
        self.learner = Learner(folder, self.domain)
        self.run(self.learner.start())
        keys = write_keys(folder)
        self.actors = [Actor(f"actor-{n}", keys, self.learner) for n in range(actors)]

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        self.run(self.learner.close())
        self.loop.close()
