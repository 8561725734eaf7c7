"""How turns are answered: plain ones by the compiled turn path, where there is one, all others here.

Both answer alike, to the bit; what is wrong with a request is told here alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np

from turnwise.v1 import dialogue_pb2, token_pb2, training_pb2
from turnwise_actor import decisions, facts
from turnwise_actor.branches import Branches
from turnwise_actor.checks import Checks
from turnwise_actor.config import TokenConfig
from turnwise_actor.errors import InternalError, PreconditionError, RequestError, UnavailableError, told
from turnwise_actor.facts import PackedFact, pack
from turnwise_actor.latencies import Latencies
from turnwise_actor.policy import Domain, Encoder, ModeExploration, Policy, RawObservation, decision_seed
from turnwise_actor.requests import TURNS, Act, PlainAct
from turnwise_actor.spool import SpoolFullError
from turnwise_actor.tokens import OpenedToken, Tokens
from turnwise_actor.uplink import FactRefusedError, Uplink
from turnwise_actor.weights import Policies

_DECIDED_OVERHEAD_BYTES = 512
"""What a Decided fact holds beside its observation and probabilities, roughly, from above."""
_FULL_TOKEN_WAIT_MS = 100.0
"""A busy learner has most of them by then, which costs less than writing, reading and sending them again."""

logger = logging.getLogger(__name__)


@dataclass
class Counters:
    """What the process has done since its start."""

    turns: int = 0
    unrecorded_turns: int = 0


@dataclass(slots=True)
class _Position:
    """Where a dialogue stands: a token's state, as the next turn needs it."""

    dialogue_id: str
    index: int
    mode: dialogue_pb2.Mode.ValueType
    user: str
    parent_id: str
    history: list[str]
    unsettled: list[PackedFact]
    unrecorded: list[str]


@dataclass(slots=True)
class _AskedTurn:
    """A request for a turn that was found sound, and all that its answer depends on."""

    request: dialogue_pb2.ActRequest
    turn: dialogue_pb2.Turn
    """The answer, filled in once it is decided."""
    raw: RawObservation
    position: _Position
    secret: bytes
    recorded: bool
    needs_disk: bool
    """Token or memory cannot carry the decision to come: the answer has to wait for an fsync."""
    came_at: float


Wait = Callable[[], Coroutine[Any, Any, bytes]]
Outcome: TypeAlias = bytes | RequestError | Wait
"""The turn, or all of the reply to a PlainAct, serialized; or why there is none, or what to wait for."""
Answered = Callable[[list[Outcome]], None]


class Request(NamedTuple):
    """Turns that are asked for in one message, at which nobody has looked yet."""

    acts: Sequence[Act]
    answered: Answered
    """Takes what came of each."""
    came_at: float
    """On time.perf_counter."""


class Turns:
    """The turns of one actor."""

    def __init__(
        self,
        domain: Domain,
        encoder: Encoder,
        checks: Checks,
        tokens: Tokens,
        policies: Policies,
        uplink: Uplink,
        config: TokenConfig,
    ) -> None:
        self._domain = domain
        self._encoder = encoder
        self._checks = checks
        self._tokens = tokens
        self._policies = policies
        self._uplink = uplink
        self._config = config
        self._branches = Branches(config)
        parts = (domain, encoder, tokens, policies, uplink, self._branches, config)
        self._compiled = TURNS and TURNS.Turns(*parts, _DECIDED_OVERHEAD_BYTES)
        self._emptied: list[tuple[Act, asyncio.Future[Any]]] = []
        """Plain turns whose tokens were full, and are no longer."""
        self.counters = Counters()
        self.latencies = Latencies()

    def answer(self, requests: Sequence[Request]) -> None:
        """Answers them together."""
        acts = [act for request in requests for act in request.acts]
        outcomes = self._outcomes(acts)
        if left := [place for place, outcome in enumerate(outcomes) if type(outcome) is not bytes]:
            came_at = [request.came_at for request in requests for _ in request.acts]
            self._answer_left([(place, acts[place], came_at[place]) for place in left], outcomes)
        now, begin = time.perf_counter(), 0
        for request in requests:
            end = begin + len(request.acts)
            own = cast(list[Outcome], outcomes[begin:end])
            self._count(sum([type(outcome) is bytes for outcome in own]), now - request.came_at)
            request.answered(own)
            begin = end

    def _count(self, turns: int, duration_s: float) -> None:
        self.counters.turns += turns
        self.latencies.add(duration_s, turns)

    def _outcomes(self, acts: list[Act]) -> list[Any]:
        """What comes of those that the compiled turn path can answer; see there."""
        if self._compiled is not None:
            try:
                return cast(list[Any], self._compiled.answer(acts))
            except Exception:
                logger.exception("the compiled turn path failed; its turns are answered without it")
        return [None] * len(acts)

    def _answer_left(self, left: Sequence[tuple[int, Act, float]], outcomes: list[Any]) -> None:
        """Fills in what the compiled turn path has not answered: what is left, and why, as it says there."""
        here = []
        for place, act, came_at in left:
            if outcomes[place] is None:
                here.append((place, act, came_at))
            elif isinstance(outcomes[place], list):
                outcomes[place] = partial(self._answer_settled, act, outcomes[place], came_at)
        if here:
            self._answer_here(here, outcomes)

    async def _answer_settled(self, act: Act, full_of: list[PackedFact], came_at: float) -> bytes:
        """The answer once what fills its token is settled: by then it is mostly a plain turn like others."""
        outcomes: list[Any] = [await self._again(act)] if await self._settled(full_of) else [None]
        if not isinstance(outcomes[0], bytes):
            self._answer_here([(0, act, came_at)], outcomes)
        outcome: Outcome = outcomes[0]
        if isinstance(outcome, RequestError):
            raise outcome
        if not isinstance(outcome, bytes):
            return await outcome()
        self._count(1, time.perf_counter() - came_at)
        return outcome

    def _again(self, act: Act) -> asyncio.Future[Any]:
        """What the compiled turn path makes of it now, with others whose tokens the same news has emptied."""
        loop = asyncio.get_running_loop()
        if not self._emptied:
            loop.call_soon(self._answer_emptied)
        self._emptied.append((act, loop.create_future()))
        return self._emptied[-1][1]

    def _answer_emptied(self) -> None:
        emptied, self._emptied = self._emptied, []
        outcomes = self._outcomes([act for act, _ in emptied])
        for (_, answered), outcome in zip(emptied, outcomes, strict=True):
            if not answered.done():  # whoever asked may have gone
                answered.set_result(outcome)

    def _answer_here(self, left: Sequence[tuple[int, Act, float]], outcomes: list[Outcome | None]) -> None:
        """Fills in the outcomes that are missing; `left` has their places, the acts, and when each came."""
        batch = []
        for place, act, came_at in left:
            try:
                asked = self._ask(_message(act), came_at)
            except Exception as error:  # noqa: BLE001 - told to whoever asked
                outcomes[place] = told(error)
            else:
                if asked.needs_disk:
                    outcomes[place] = partial(self._answer_by_disk, asked)
                else:
                    batch.append((asked, place))
        if batch:
            self._answer(batch, outcomes)
        for place, act, _ in left:
            outcomes[place] = _reply(act, outcomes[place])

    def _ask(self, act: dialogue_pb2.ActRequest, came_at: float) -> _AskedTurn:
        """Checks a request."""
        opened, unsettled = self.open(act.token)
        self._check_age(opened.state)
        raw = self._checks.act(act)
        if self._policies.current is None:
            raise UnavailableError("this actor has no policy yet", reason="NO_POLICY")
        position = self._position(opened, unsettled)
        recorded = self._uplink.can_record
        needs_disk = recorded and not (self._uplink.has_room and self._fits_token(position, act))
        turn, secret = dialogue_pb2.Turn(), opened.key.secret
        return _AskedTurn(act, turn, raw, position, secret, recorded, needs_disk, came_at)

    def _answer(self, batch: Sequence[tuple[_AskedTurn, int]], outcomes: list[Outcome | None]) -> None:
        """Decides them together; what comes of each goes to its place."""
        try:
            made = self._decide([asked for asked, _ in batch])
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            if len(batch) == 1:
                outcomes[batch[0][1]] = told(error)
            else:  # somebody's observation is too much for the policy: the others need not suffer for it
                for each in batch:
                    self._answer([each], outcomes)
            return
        for (asked, place), fact in zip(batch, made, strict=True):
            try:
                if asked.recorded:
                    self._note(asked, fact)
                    outcomes[place] = self._carry(asked, fact)
                else:
                    outcomes[place] = self._hand_over(asked)
            except Exception as error:  # noqa: BLE001 - told to whoever asked
                outcomes[place] = told(error)

    def _decide(self, batch: Sequence[_AskedTurn]) -> list[training_pb2.Fact]:
        """Fills the turns, their tokens excepted; the facts of them. What is not recorded is greedy."""
        policy = self._policies.current
        assert policy is not None
        size = len(batch)
        encoded = np.zeros((size, self._encoder.size), np.float32)
        allowed = np.ones((size, len(self._domain.action_ids)), np.bool_)
        seeds, explorations = [], []
        by_mode: dict[int, ModeExploration] = {}
        for row, asked in enumerate(batch):
            request, position = asked.request, asked.position
            self._encoder.fill(encoded[row], asked.raw, position.history)
            if request.allowed:
                allowed[row] = decisions.allowed_mask(self._domain, request.allowed)
            mode = position.mode if asked.recorded else dialogue_pb2.EVALUATE
            if mode not in by_mode:
                by_mode[mode] = policy.exploration.of(dialogue_pb2.Mode.Name(mode))
            explorations.append(by_mode[mode])
            who = position.dialogue_id, position.index, request.request_id
            seeds.append(decision_seed(asked.secret, *who, policy.version))
        try:
            choices = decisions.choose(policy, encoded, allowed, explorations, seeds)
        except ValueError as error:
            raise InternalError(f"policy {policy.version} gives no usable values here: {error}") from error
        made = []
        for asked, choice, mask, seed in zip(batch, choices, allowed, seeds, strict=True):
            packed = decisions.pack_mask(mask) if asked.request.allowed else b""
            made.append(self._fill(asked, policy, choice, packed, seed))
        return made

    def _fill(
        self, asked: _AskedTurn, policy: Policy, choice: decisions.Choice, mask: bytes, seed: bytes
    ) -> training_pb2.Fact:
        """Fills the turn, its token excepted; the fact of it."""
        # In place, field by field: a message given to another's constructor is copied.
        position, turn, version = asked.position, asked.turn, policy.version
        action = self._domain.action_ids[choice.action]
        decision_id = decisions.decision_id(
            position.dialogue_id, position.parent_id, asked.request.observation, mask, action, str(version)
        )
        turn.dialogue_id = position.dialogue_id
        turn.index = position.index
        turn.decision_id = decision_id
        turn.action = action
        turn.say = decisions.say_for(self._domain, choice.action, seed)
        turn.probability = choice.probability
        turn.q_values = choice.q_values
        turn.policy_version.generation = version.generation
        turn.policy_version.number = version.number
        turn.learned_through = policy.learned_through
        turn.recorded = asked.recorded
        turn.domain_fingerprint = self._domain.fingerprint
        fact = facts.decided(position.dialogue_id, decision_id)
        decided = fact.decided
        decided.decision_id = decision_id
        decided.parent_id = position.parent_id
        decided.index = position.index
        decided.observation.CopyFrom(asked.request.observation)
        decided.history.extend(position.history)
        decided.allowed = mask
        decided.action = action
        decided.probabilities = choice.probabilities
        decided.policy_version.CopyFrom(turn.policy_version)
        decided.domain_fingerprint = self._domain.fingerprint
        decided.mode = position.mode
        decided.recorded = asked.recorded
        return fact

    def _note(self, asked: _AskedTurn, fact: training_pb2.Fact) -> None:
        """Notes what the decision goes on from."""
        position = asked.position
        self._branches.add(position.dialogue_id, position.parent_id, asked.turn.decision_id)
        fact.unrecorded.extend(position.unrecorded)

    def _carry(self, asked: _AskedTurn, fact: training_pb2.Fact) -> bytes:
        """The turn whose decision outlives this process in the token, and is on its way to the learner."""
        asked.position.unsettled += self._uplink.add([pack(fact)])
        return self._hand_over(asked)

    def _hand_over(self, asked: _AskedTurn) -> bytes:
        """Seals the token that goes on from the turn; the turn, serialized."""
        position, turn = asked.position, asked.turn
        if asked.recorded:
            position.unrecorded.clear()
        else:
            position.unrecorded.append(turn.decision_id)
        self.counters.unrecorded_turns += not asked.recorded
        turn.token = self._seal_next(position, turn)
        return turn.SerializeToString()

    # Tokens.

    def open(self, token: bytes) -> tuple[OpenedToken, list[PackedFact]]:
        """Opens a token and sends its unsettled facts on, whatever else is wrong with the request; both."""
        self._checks.token(token)
        opened = self._tokens.open(token)
        return opened, self._uplink.add(map(pack, opened.state.unsettled))

    def _check_age(self, state: token_pb2.TokenState) -> None:
        age_s = (facts.now_ms() - state.issued_ms) / 1000
        if -self._config.clock_leeway_s <= age_s <= self._config.max_age_s + self._config.clock_leeway_s:
            return
        days = self._config.max_age_s / 86_400
        raise PreconditionError(
            f"token: got an age of {age_s / 86_400:.1f} days; wanted at most {days:g}: begin a new dialogue "
            "(below zero: the actors' clocks differ)",
            reason="TOKEN_EXPIRED",
        )

    def _position(self, opened: OpenedToken, unsettled: list[PackedFact]) -> _Position:
        """Where the dialogue stands; an idle one goes on as a new one, linked to it."""
        state = opened.state
        position = _Position(
            dialogue_id=opened.dialogue_id,
            index=state.next_index,
            mode=state.mode or dialogue_pb2.TEACH,
            user=state.user,
            parent_id=state.decision_id,
            history=self.history(state),
            unsettled=unsettled,
            unrecorded=list(state.unrecorded),
        )
        if facts.now_ms() - state.issued_ms > 1000 * self._domain.dialogue.idle_timeout_s:
            self._continue_idle(position, state.issued_ms)
        limit = self._domain.dialogue.max_turns
        if position.index >= limit:
            raise PreconditionError(
                f"dialogue {position.dialogue_id!r} has had {position.index} turns of at most {limit} "
                "(the domain's max_turns): end it (outcome 'limit' if it was cut off) and begin another",
                reason="DIALOGUE_FULL",
            )
        return position

    def _continue_idle(self, position: _Position, issued_ms: int) -> None:
        before = position.dialogue_id
        position.dialogue_id = decisions.linked_dialogue_id(before, position.parent_id, issued_ms)
        position.index, position.parent_id, position.history = 0, "", []
        begun = facts.started(
            position.dialogue_id, position.user, position.mode, self._domain.fingerprint, continues=before
        )
        position.unsettled += self._uplink.add([pack(begun)])

    def history(self, state: token_pb2.TokenState) -> list[str]:
        """The actions that the encoder sees; a token of an older domain may name some that are gone."""
        known = [name for name in state.history if name in self._domain.action_index]
        return known[-self._domain.state.history :] if self._domain.state.history else []

    def _seal_next(self, position: _Position, turn: dialogue_pb2.Turn) -> bytes:
        history = [*position.history, turn.action]
        state = token_pb2.TokenState(
            issued_ms=facts.now_ms(),
            next_index=position.index + 1,
            mode=position.mode,
            user=position.user,
            decision_id=turn.decision_id,
            history=history[-self._domain.state.history :] if self._domain.state.history else [],
            domain_fingerprint=self._domain.fingerprint,
            unrecorded=position.unrecorded,
        )
        return self._tokens.seal(position.dialogue_id, state, position.unsettled)

    # Tokens that are full.

    def _fits_token(self, position: _Position, request: dialogue_pb2.ActRequest) -> bool:
        """Whether a token can carry one more decision beside the facts that it carries already."""
        to_come = request.observation.ByteSize() + 5 * len(self._domain.action_ids) + _DECIDED_OVERHEAD_BYTES
        carried = sum([len(fact.body) for fact in position.unsettled])
        return len(position.unsettled) < self._config.max_facts and (
            carried + to_come <= self._config.max_fact_bytes
        )

    async def _settled(self, unsettled: Sequence[PackedFact]) -> bool:
        if await self._uplink.until_settled(unsettled, _FULL_TOKEN_WAIT_MS):
            return True
        try:
            await self._uplink.settle(unsettled, wait_ms=0.0)
        except SpoolFullError:
            return False
        except FactRefusedError:
            return True  # nobody ever takes it, and the token need not carry it
        return True

    async def _spooled(self, unsettled: Sequence[PackedFact]) -> bool:
        try:
            await self._uplink.spool(unsettled)
        except SpoolFullError:
            return False
        return True

    async def _answer_by_disk(self, asked: _AskedTurn) -> bytes:
        turn = await self._turn_by_disk(asked)
        self._count(1, time.perf_counter() - asked.came_at)
        return turn

    async def _turn_by_disk(self, asked: _AskedTurn) -> bytes:
        """The turn, once what its token cannot carry is settled; not recorded, if nobody takes it."""
        position = asked.position
        if position.unsettled:
            asked.recorded = await self._settled(position.unsettled)
        if asked.recorded:
            position.unsettled.clear()
            fact = self._decide([asked])[0]
            self._note(asked, fact)
            if self._uplink.has_room and self._fits_token(position, asked.request):
                return self._carry(asked, fact)
            if await self._spooled([pack(fact)]):
                return self._hand_over(asked)
            asked.recorded = False
        self._decide([asked])
        return self._hand_over(asked)


def _message(act: Act) -> dialogue_pb2.ActRequest:
    return act if isinstance(act, dialogue_pb2.ActRequest) else act.message()


def _reply(act: Act, outcome: Outcome | None) -> Outcome:
    """A PlainAct is given all of its reply, not its turn alone."""
    assert outcome is not None
    if isinstance(act, dialogue_pb2.ActRequest) or isinstance(outcome, RequestError):
        return outcome
    return act.reply(outcome) if isinstance(outcome, bytes) else partial(_later_reply, act, outcome)


async def _later_reply(act: PlainAct, turn: Wait) -> bytes:
    return act.reply(await turn())
