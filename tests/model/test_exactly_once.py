"""Exactly once, whatever happens: actors, tokens, spools, journal and trainer against a plain oracle.

Clients keep the SDK's contract, with the SDK's own state machine: they carry the newest token, repeat a
request as it was until it is answered, and send again what was only spooled. Everything else may go wrong.
TURNWISE_MODEL_EXAMPLES sets the number of examples.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.model.oracle import Oracle
from tests.model.world import ACTIONS, Clock, World
from turnwise import _requests
from turnwise._requests import Revisions, feedback_request
from turnwise._state import DialogueState, Domains, TurnState, give
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import training_pb2
from turnwise_actor import facts
from turnwise_actor.errors import PreconditionError, UnavailableError
from turnwise_cli.books import Books
from turnwise_cli.ledger import Trainer, compare
from turnwise_learner.trainer import env_runner

EXAMPLES = int(os.environ.get("TURNWISE_MODEL_EXAMPLES", "400"))
ACTORS = 3
WAIT_S = 60
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
USERS = ("ann", "bob")

actors = st.integers(0, ACTORS - 1)
lost = st.lists(actors, max_size=2)
"""Actors that answered in vain: their replies were lost and the request was sent again."""
answered = st.sampled_from([True, True, True, False])
"""False: the last reply is lost too; the client has still to hear one."""

verdict = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["reward"] * 3 + ["correct", "retract", "retract", "override", "drop"]),
        "value": st.sampled_from([-1.0, -0.5, 0.5, 1.0]),
        "action": st.sampled_from(ACTIONS),
        "ms_later": st.integers(0, 1),
        "lost": lost,
        "actor": actors,
        "answered": answered,
    }
)
PAUSES_S = {"a second": 1, "a minute": WAIT_S, "lunch": 40 * 60, "a day": 86_400, "a season": 91 * 86_400}
HAPPENINGS = ["policy", "policy", "crash", "crash", "link", "link", "disk", "learner", "trainer", *PAUSES_S]


class OurRevisions(Revisions):
    """A client's revisions, on the test's clock; two clients may give the same one."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def next(self) -> int:
        self._last = max(self._last + 1, self._clock.ms)
        return self._last


@dataclass(eq=False)
class Errand:
    """A call that a client has begun: it repeats its request until it hears the answer."""

    flow: Generator[Any, Any, Any]
    tab: Tab | None
    request: Any = None

    def __post_init__(self) -> None:
        self.request = next(self.flow)


@dataclass(eq=False)
class Tab:
    """A browser tab: the SDK's state of one dialogue, and the turns seen in it."""

    state: DialogueState
    user: str
    mode: int
    turns: list[TurnState] = field(default_factory=list)
    busy: Errand | None = None
    over: bool = False
    """Its token has become too old to act on, or the dialogue has had all its turns."""


class Conversations(RuleBasedStateMachine):
    @initialize(
        gamma=st.sampled_from([0.0, 0.9]), wait_s=st.sampled_from([0, WAIT_S]), cut_off=st.sets(actors)
    )
    def begin_world(self, gamma: float, wait_s: int, cut_off: set[int]) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(facts, "now_ms", self.clock.now_ms)
        self.patch.setattr(env_runner, "_now_ms", self.clock.now_ms)
        # Request ids seed the draws: the same example must say the same again.
        numbers = itertools.count(1)
        self.patch.setattr(_requests, "new_id", lambda: f"{next(numbers):032x}")
        self.world = World(Path(self.folder.name), gamma, wait_s, ACTORS)
        self.learner = self.world.learner
        self.oracle = Oracle(gamma)
        self.clients = [OurRevisions(self.clock) for _ in range(2)]
        self.tabs: list[Tab] = []
        self.errands: list[Errand] = []
        self.spooled: list[Any] = []
        self.at: dict[bytes, tuple[str, str]] = {}
        """Token -> dialogue and decision that it stands at, as the client knows them."""
        self.dialogues = self.versions = 0
        for actor in cut_off:
            self.world.actors[actor].outbox.connected = False
        self.open_tab("teach", 0, 0)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.come_to_rest()
            finally:
                self.world.close()
                self.patch.undo()
                self.folder.cleanup()

    # Carrying requests

    def answer(self, request: Any, actor: int, tab: Tab | None, heard: bool) -> Any:
        """One request at one actor; the oracle notes what it brought about."""
        if isinstance(request, pb.FeedbackRequest):
            # Without its token an actor knows no user: then the request must name the teacher.
            self.oracle.given(request, tab.user if tab else "")
        elif isinstance(request, pb.EndRequest):
            assert tab is not None
            dialogue_id, decision_id = self.at[request.token]
            self.oracle.ended(request, decision_id, dialogue_id, tab.user)
        reply = self.world.run(self.world.actors[actor].answer(request))
        if isinstance(reply, pb.StartDialogueReply):
            self.at[reply.token] = reply.dialogue_id, ""
        elif isinstance(reply, pb.Turn):
            assert tab is not None
            dialogue_id, parent = self.at[request.token]
            # An idle dialogue goes on as a new one.
            parent = parent if reply.dialogue_id == dialogue_id else ""
            self.oracle.made(reply, parent, tab.mode, heard, self.clock.ms)
            self.at[reply.token] = reply.dialogue_id, reply.decision_id
        return reply

    def run(self, errand: Errand, lost: list[int], actor: int, answered: bool = True) -> bool:
        """Repeats a request at the actors `lost`, then hears the answer of `actor`; True: it is done."""
        try:
            while True:
                for deaf in lost:
                    self.try_in_vain(errand, deaf)
                if not answered:
                    self.try_in_vain(errand, actor)
                    return False
                reply = self.answer(errand.request, actor, errand.tab, heard=True)
                if isinstance(reply, pb.Receipt) and reply.settled == pb.Receipt.SPOOLED:
                    self.spooled.append((errand.request, errand.tab))
                errand.request = errand.flow.send(reply)
        except UnavailableError:
            return False  # it is repeated later
        except PreconditionError as error:
            if error.reason not in ("TOKEN_EXPIRED", "DIALOGUE_FULL") or errand.tab is None:
                raise
            errand.tab.over = True
            errand.flow.close()
        except StopIteration as stop:
            if errand.tab is not None and isinstance(stop.value, tuple):
                errand.tab.turns.append(TurnState(*stop.value))
        if errand in self.errands:
            self.errands.remove(errand)
        if errand.tab is not None and errand.tab.busy is errand:
            errand.tab.busy = None
        return True

    def try_in_vain(self, errand: Errand, actor: int) -> None:
        with contextlib.suppress(UnavailableError, PreconditionError):
            self.answer(errand.request, actor, errand.tab, heard=False)

    def begin(self, flow: Any, tab: Tab | None, lost: list[int], actor: int, answered: bool) -> None:
        errand = Errand(flow, tab)
        self.errands.append(errand)
        self.run(errand, lost, actor, answered)

    def begin_own(self, tab: Tab, flow: Any, lost: list[int], actor: int, answered: bool) -> None:
        """A call after which the tab's next must wait."""
        tab.busy = Errand(flow, tab)
        self.errands.append(tab.busy)
        self.run(tab.busy, lost, actor, answered)

    def any_tab(self, data: st.DataObject, which: list[Tab]) -> Tab:
        return which[data.draw(st.integers(0, len(which) - 1), label="tab")]

    def idle_tabs(self) -> list[Tab]:
        return [t for t in self.tabs if not (t.busy or t.over or t.state.ended)]

    def rated_tabs(self) -> list[Tab]:
        return [tab for tab in self.tabs if tab.turns]

    # People

    @precondition(lambda self: self.dialogues < 3)
    @rule(mode=st.sampled_from(["teach", "serve", "evaluate"]), client=st.integers(0, 1), actor=actors)
    def open_tab(self, mode: str, client: int, actor: int) -> None:
        self.dialogues += 1
        name, user = f"talk-{self.dialogues}", USERS[client]
        state = DialogueState.new(self.clients[client], Domains(), name, user, mode)
        tab = Tab(state, user, pb.Mode.Value(mode.upper()))
        self.tabs.append(tab)
        self.begin_own(tab, state.begin(), [], actor, answered=True)

    @precondition(lambda self: self.idle_tabs())
    @rule(
        data=st.data(),
        words=st.text("ab", min_size=1, max_size=4),
        lost=lost,
        actor=actors,
        answered=answered,
    )
    def say(self, data: st.DataObject, words: str, lost: list[int], actor: int, answered: bool) -> None:
        """One turn a letter, as long as they are answered."""
        tab = self.any_tab(data, self.idle_tabs())
        for word in words:
            if not tab.busy and not tab.over:
                self.clock.ms += 1
                self.begin_own(tab, tab.state.act(word, None, None, None), lost, actor, answered)

    @precondition(lambda self: self.errands)
    @rule(data=st.data(), actor=actors, answered=answered)
    def repeat(self, data: st.DataObject, actor: int, answered: bool) -> None:
        errand = self.errands[data.draw(st.integers(0, len(self.errands) - 1))]
        self.run(errand, [], actor, answered)

    @precondition(lambda self: any(isinstance(e.request, pb.ActRequest) for e in self.errands))
    @rule()
    def give_up_an_act(self) -> None:
        """The page is loaded again: the same place in the dialogue, another request."""
        errand = next(e for e in self.errands if isinstance(e.request, pb.ActRequest))
        errand.flow.close()
        self.errands.remove(errand)
        assert errand.tab is not None
        errand.tab.busy = None

    @precondition(lambda self: self.rated_tabs())
    @rule(data=st.data(), client=st.integers(0, 1), back=st.integers(-1, 2))
    def another_tab(self, data: st.DataObject, client: int, back: int) -> None:
        """On the same place of a dialogue (-1), or from an old token."""
        tab = self.any_tab(data, self.rated_tabs())
        if back < 0:
            state = DialogueState.resumed(self.clients[client], Domains(), tab.state.token_text())
            turns = list(tab.turns)
        else:
            state, turns = tab.state.forked(tab.turns, tab.turns[-1 - back % len(tab.turns)].index)
        self.tabs.append(Tab(state, tab.user, tab.mode, turns))

    @precondition(lambda self: self.rated_tabs())
    @rule(data=st.data(), back=st.integers(0, 2), verdicts=st.lists(verdict, min_size=1, max_size=4))
    def judge(self, data: st.DataObject, back: int, verdicts: list[dict[str, Any]]) -> None:
        """A teacher who changes his mind, heard by one actor and another."""
        tab = self.any_tab(data, self.rated_tabs())
        turn = tab.turns[-1 - back % len(tab.turns)]
        for given in verdicts:
            self.clock.ms += given["ms_later"]
            flow = self.flow_of(tab, turn, given["kind"], given["value"], given["action"])
            self.begin(flow, tab, given["lost"], given["actor"], given["answered"])

    def flow_of(self, tab: Tab, turn: TurnState, kind: str, value: float, action: str) -> Any:
        match kind:
            case "reward":
                return tab.state.reward(turn, value, "")
            case "correct":
                return tab.state.correct(turn, action, "")
            case "retract":
                return tab.state.retract(turn)
            case "override":
                return tab.state.overridden(turn, action, None)
        return tab.state.dropped(turn)

    @precondition(lambda self: self.rated_tabs())
    @rule(data=st.data(), value=st.sampled_from([-1.0, 1.0]), lost=lost, actor=actors, answered=answered)
    def rate_from_elsewhere(self, data: st.DataObject, value: float, **how: Any) -> None:
        """By another teacher, without a token: the decision's own fact may still be anywhere."""
        tab = self.any_tab(data, self.rated_tabs())
        turn = tab.turns[-1]
        request = feedback_request(
            self.clients[1].next(), turn.dialogue_id, turn.decision_id, reward=value, teacher="carl"
        )
        self.begin(give(request), None, **how)

    @precondition(lambda self: self.idle_tabs())
    @rule(
        data=st.data(),
        outcome=st.sampled_from(["success", "idle"]),
        reward=st.sampled_from([None, 1.0, -1.0]),
        last_state=st.booleans(),
        janitor=st.booleans(),
        lost=lost,
        actor=actors,
        answered=answered,
    )
    def end(
        self, data: st.DataObject, outcome: str, reward: float | None, last_state: bool, janitor: bool,
        **how: Any,
    ) -> None:  # fmt: skip
        """By the tab itself, or by a janitor that closes what seems idle while the tab goes on."""
        tab = self.any_tab(data, self.idle_tabs())
        if not tab.state.token:
            return
        self.clock.ms += 1
        if janitor:
            state = DialogueState.resumed(self.clients[1], Domains(), tab.state.token_text())
            tab = Tab(state, tab.user, tab.mode, list(tab.turns))
            self.tabs.append(tab)
        words = "b" if last_state else None
        self.begin_own(tab, tab.state.end(outcome, reward, words, None, None), **how)

    @precondition(lambda self: self.spooled)
    @rule(actor=actors)
    def send_spooled_again(self, actor: int) -> None:
        request, tab = self.spooled[0]
        try:
            receipt = self.answer(request, actor, tab, heard=True)
        except UnavailableError:
            return
        if receipt.settled == pb.Receipt.LEARNER:
            self.spooled.pop(0)

    # Machines

    @rule(what=st.sampled_from(HAPPENINGS), actor=actors, favourite=st.integers(0, 2))
    def something_happens(self, what: str, actor: int, favourite: int) -> None:
        """A process dies, a link, a disk or the learner goes or comes back, a policy reaches one actor."""
        its = self.world.actors[actor]
        if what == "policy":
            self.versions += 1
            its.install(self.versions, favourite)
        elif what == "crash":
            its.crash()
        elif what == "link":
            its.outbox.connected = not its.outbox.connected
        elif what == "disk":
            its.outbox.disk_full = not its.outbox.disk_full
        elif what == "learner":
            self.world.run(self.learner.stop() if self.learner.up else self.learner.start())
        elif what == "trainer":
            self.learner.start_trainer()
        else:
            self.clock.ms += 1000 * PAUSES_S[what]

    @precondition(lambda self: self.learner.up)
    @rule(
        actor=actors, chosen=st.lists(st.integers(0, 9), min_size=1, max_size=6), acknowledged=st.booleans()
    )
    def deliver(self, actor: int, chosen: list[int], acknowledged: bool) -> None:
        """Some facts, some twice, in any order."""
        self.world.run(self.world.actors[actor].outbox.deliver(chosen, acknowledged))

    @rule(save=st.booleans())
    def train(self, save: bool) -> None:
        self.learner.train()
        if save:
            self.learner.checkpoint()

    # What must be true

    @invariant()
    def nothing_is_learned_twice_or_too_soon(self) -> None:
        if not hasattr(self, "world"):
            return
        replay = self.learner.replay
        names = [name.decode() for name in replay.decision_id if name]
        assert len(names) == len(set(names)) == len(replay)
        for name in names:
            if replay.priority(name):
                waited_ms = self.clock.ms - self.oracle.decisions[name].made_ms
                assert waited_ms >= 1000 * self.world.wait_s

    @precondition(lambda self: self.errands or self.spooled)
    @rule()
    def come_to_rest(self) -> None:
        """Everything that was lost is found, and the books are compared."""
        self.mend()
        for errand in list(self.errands):
            assert self.run(errand, [], 0)
        for request, tab in self.spooled:
            assert self.answer(request, 1, tab, heard=True).settled == pb.Receipt.LEARNER
        self.spooled.clear()
        for tab in self.tabs:
            self.come_back(tab)
        for actor in self.world.actors:
            self.world.run(actor.outbox.deliver_all())
        self.clock.ms += 1000 * self.world.wait_s
        self.learner.train()
        self.compare()

    def mend(self) -> None:
        if not self.learner.up:
            self.world.run(self.learner.start())
        for actor in self.world.actors:
            actor.outbox.connected, actor.outbox.disk_full = True, False

    def come_back(self, tab: Tab) -> None:
        """Whoever has a token shows it once more, with words about the whole dialogue."""
        if tab.state.token:
            request = feedback_request(
                tab.state._revisions.next(), tab.state.dialogue_id, "", token=tab.state.token, comment="…"
            )
            assert self.answer(request, 2, tab, heard=True).settled == pb.Receipt.LEARNER

    def compare(self) -> None:
        journal = self.learner.facts()
        decided = [fact.decided.decision_id for fact in journal if fact.HasField("decided")]
        there = set(decided)
        oracle = self.oracle
        # The journal: once each, nothing invented, nothing lost.
        assert len(decided) == len(there)
        assert there <= set(oracle.decisions)
        assert {name for name, decision in oracle.decisions.items() if decision.promised} <= there
        kinds = ("feedback", "delivered")
        told = [f.key[2:] for f in journal if f.WhichOneof("kind") in kinds]
        assert sorted(told) == sorted([*oracle.feedback, *self.rewards_of_ends()])
        ended = {fact.ended.decision_id for fact in journal if fact.HasField("ended")}
        assert set(oracle.ends_at) == ended - {""}
        self.compare_replay(there, journal)
        self.compare_counters(there)
        self.check_ledger(there)

    def rewards_of_ends(self) -> list[str]:
        return [name for name, request in self.oracle.ends.items() if request.HasField("reward")]

    def compare_replay(self, there: set[str], journal: list[training_pb2.Fact]) -> None:
        oracle, replay = self.oracle, self.learner.replay
        # Of a decision made twice, and of two ends at one turn, the journal keeps the first that came.
        at_ms = {fact.decided.decision_id: fact.time_ms for fact in journal if fact.HasField("decided")}
        ended = {fact.ended.decision_id: fact.ended for fact in journal if fact.HasField("ended")}
        ended_ms = {fact.ended.decision_id: fact.time_ms for fact in journal if fact.HasField("ended")}
        learnable, confirmed = oracle.learnable(there), oracle.confirmed(there)
        held = {name.decode() for name in replay.decision_id if name}
        assert {name for name in held if not name.endswith(":last")} == learnable
        for name in learnable:
            decision = oracle.decisions[name]
            whole = oracle.last_turn(decision.dialogue_id, there) == name
            wanted = oracle.lesson(name, name in confirmed, whole)
            row = replay._rows[name]
            action, reward = int(replay.action[row]), float(replay.reward[row])
            assert (ACTIONS[action] if action >= 0 else "") == wanted.action, name
            assert (None if np.isnan(reward) else pytest.approx(reward)) == wanted.reward, name
            given = {(c.teacher, ACTIONS[c.action]) for c in replay._corrections.get(row, ())}
            assert given == wanted.corrections, name
            child = int(replay.child[row])
            follows = replay.decision_id[child].decode() if child >= 0 else ""
            met = {c for c in learnable if oracle.decisions[c].parent == name} & confirmed
            if met:
                assert follows in met, "the next state is a turn that somebody met"
            if name in ended:
                later = {
                    c
                    for c in learnable
                    if oracle.decisions[c].parent == name and (c in confirmed or at_ms[c] >= ended_ms[name])
                }
                assert bool(replay.terminated[row]) == (ended[name].terminated and not later), name
            has_return = wanted.action and wanted.reward is not None
            if not oracle.gamma:
                assert bool(replay._has_return(np.array([row]))[0]) == bool(has_return)
            if not has_return and not any(oracle.lesson(n, True, False).corrections for n in learnable):
                assert replay.priority(name) == 0

    def compare_counters(self, there: set[str]) -> None:
        """The trainer's counters: each turn, each rating and each fork once, whatever crashed."""
        oracle, counters = self.oracle, self.learner.counters
        learnable, confirmed = oracle.learnable(there), oracle.confirmed(there)
        assert counters.get("turns", 0) == len(learnable & confirmed)
        if not oracle.gamma:
            assert counters.get("rated_turns", 0) == sum(oracle.rated(name) for name in learnable)
        children: dict[str, int] = {}
        for name in there & confirmed:
            parent = oracle.decisions[name].parent
            children[parent] = children.get(parent, 0) + bool(parent)
        assert counters.get("forks", 0) == sum(max(0, count - 1) for count in children.values())

    def check_ledger(self, there: set[str]) -> None:
        """The books close, with the trainer and with what the clients know."""
        reader = self.learner.reader()
        books = Books(self.world.domain, reader.domain).add(reader.read_after(0, 100_000))
        learned, counters, replay = books.learned(), self.learner.counters, self.learner.replay
        trainer = Trainer(
            "the trainer",
            self.learner.runner.cursor,
            self.world.domain.fingerprint,
            len(replay),
            replay.evicted,
            counters.get("turns", 0),
            counters.get("rated_turns", 0),
            self.learner.runner.held,
        )
        assert compare(learned, trainer) == []
        books.close(self.clock.ms)
        assert books.problems == []
        confirmed = self.oracle.confirmed(there)
        assert books.counts["confirmed"] == len(there & confirmed)
        assert books.counts["unconfirmed"] == len(there - confirmed)
        assert books.counts["rated turns"] == len(self.oracle.rated_turns())
        if not self.oracle.gamma:
            assert books.counts["waiting"] == 0
            assert books.counts["applied"] == self.oracle.applied(there)


TestExactlyOnce = pytest.mark.timeout(60 + EXAMPLES)(Conversations.TestCase)
TestExactlyOnce.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
