"""What an actor does with a request. Nothing about a dialogue is kept here: all of it is in the token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from turnwise.v1 import dialogue_pb2, token_pb2, training_pb2
from turnwise_actor import decisions, facts
from turnwise_actor.access.credentials import Principal
from turnwise_actor.branches import Branches
from turnwise_actor.checks import Checks
from turnwise_actor.config import TokenConfig
from turnwise_actor.errors import (
    InternalError,
    PreconditionError,
    RequestError,
    TeacherError,
    TokenError,
    UnavailableError,
    told,
)
from turnwise_actor.latencies import Latencies
from turnwise_actor.policy import Domain, Encoder, ModeExploration, Policy, RawObservation, decision_seed
from turnwise_actor.spool import SpoolFullError
from turnwise_actor.tokens import OpenedToken, Tokens
from turnwise_actor.uplink import FactRefusedError, Uplink
from turnwise_actor.weights import Policies

_DECIDED_OVERHEAD_BYTES = 512
"""What a Decided fact holds beside its observation and probabilities, roughly, from above."""
_MOST_AT_ONCE = 32
"""So many turns that wait are answered without looking for more: the others' requests wait meanwhile."""
_QUIET_LOOPS = 8
"""... and after so many turns of the event loop that brought no further one."""


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
    unsettled: list[training_pb2.Fact]
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
    """The token cannot carry the decision to come: the answer has to wait for an fsync."""
    came_at: float


Wait = Callable[[], Coroutine[Any, Any, None]]
Answered = Callable[["RequestError | Wait | None"], None]
"""Told that a turn is answered, why it is not, or what to wait for until it is."""


class _Request(NamedTuple):
    """A request for a turn at which nobody has looked yet."""

    act: dialogue_pb2.ActRequest
    turn: dialogue_pb2.Turn
    answered: Answered
    came_at: float
    """On time.perf_counter."""


class Dialogues:
    """The dialogue service without its transport. Errors are RequestErrors."""

    def __init__(
        self, domain: Domain, tokens: Tokens, policies: Policies, uplink: Uplink, config: TokenConfig
    ) -> None:
        self._domain = domain
        self._encoder = Encoder(domain)
        self._checks = Checks(domain, self._encoder, config.max_token_bytes)
        self._tokens = tokens
        self._policies = policies
        self._uplink = uplink
        self._config = config
        self._branches = Branches(config)
        self._description = describe(domain)
        self._waiting: list[_Request] = []
        self.counters = Counters()
        self.latencies = Latencies()

    @property
    def description(self) -> dialogue_pb2.DomainDescription:
        """The domain that is served."""
        return self._description

    async def start(self, request: dialogue_pb2.StartDialogueRequest) -> dialogue_pb2.StartDialogueReply:
        """Begins a dialogue: its first token carries the fact that it began."""
        self._checks.start(request)
        mode = request.mode or dialogue_pb2.TEACH
        fact = facts.started(request.dialogue_id, request.user, mode, self._domain.fingerprint)
        self._uplink.add([fact])
        state = token_pb2.TokenState(
            issued_ms=facts.now_ms(),
            mode=mode,
            user=request.user,
            domain_fingerprint=self._domain.fingerprint,
        )
        token = self._tokens.seal(request.dialogue_id, state, [fact])
        return dialogue_pb2.StartDialogueReply(
            dialogue_id=request.dialogue_id, token=token, domain=self._description
        )

    async def act(self, request: dialogue_pb2.ActRequest) -> dialogue_pb2.Turn:
        """Answers one turn; waits for nothing but, when the token has grown too large, the spool's fsync."""
        turn = dialogue_pb2.Turn()
        answered: asyncio.Future[RequestError | Wait | None] = asyncio.get_running_loop().create_future()
        self.answer_soon(request, turn, partial(_resolve, answered))
        outcome = await answered
        if isinstance(outcome, RequestError):
            raise outcome
        if outcome is not None:
            await outcome()
        return turn

    def answer_soon(
        self, request: dialogue_pb2.ActRequest, turn: dialogue_pb2.Turn, answered: Answered
    ) -> None:
        """Answers as soon as nothing further is being asked, all of it together: that costs half.

        gRPC hands over one call in a turn of the event loop, however many wait.
        """
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._gather, 0, 0)
        self._waiting.append(_Request(request, turn, answered, time.perf_counter()))

    async def _answer_by_disk(self, asked: _AskedTurn) -> None:
        """Answers once the disk has what the token cannot carry; not recorded, if the disk takes nothing."""
        position = asked.position
        if position.unsettled:
            asked.recorded = await self._spooled(position.unsettled)
        if asked.recorded:
            position.unsettled.clear()
            fact = self._decide([asked])[0]
            self._note(asked, fact)
            if self._fits_token(position, asked.request):
                self._carry(asked, fact)
                return
            if await self._spooled([fact]):
                self._hand_over(asked)
                return
            asked.recorded = False
        self._decide([asked])
        self._hand_over(asked)

    async def give_feedback(
        self, request: dialogue_pb2.FeedbackRequest, caller: Principal | None = None
    ) -> dialogue_pb2.Receipt:
        """Feedback or a delivery; answers when it is settled."""
        self._checks.token(request.token, optional=True)
        user, unsettled, unrecorded = "", list[training_pb2.Fact](), list[str]()
        if request.token:
            opened, unsettled = self._open(request.token)
            if not decisions.linked(opened.dialogue_id, request.dialogue_id):
                raise TokenError(
                    f"token: got one of {opened.dialogue_id!r}; wanted one of {request.dialogue_id!r}",
                    reason="TOKEN_FOREIGN",
                )
            user, unrecorded = opened.state.user, list(opened.state.unrecorded)
        self._checks.feedback(request)
        new = facts.from_feedback(request, _teacher(request.teacher, user, caller))
        new[0].unrecorded.extend(unrecorded)
        return await self._settle([*unsettled, *new])

    async def end(
        self, request: dialogue_pb2.EndRequest, caller: Principal | None = None
    ) -> dialogue_pb2.Receipt:
        """Ends a dialogue; answers when that is settled."""
        opened, unsettled = self._open(request.token)
        self._checks.end(request)
        state, dialogue_id = opened.state, opened.dialogue_id
        new = [facts.ended(request, dialogue_id, state.decision_id, self._history(state))]
        new[0].unrecorded.extend(state.unrecorded)
        if request.HasField("reward"):
            new.append(facts.dialogue_reward(request, dialogue_id, _teacher("", state.user, caller)))
        return await self._settle([*unsettled, *new])

    # Tokens.

    def _open(self, token: bytes) -> tuple[OpenedToken, list[training_pb2.Fact]]:
        """Opens a token and sends its unsettled facts on, whatever else is wrong with the request; both."""
        self._checks.token(token)
        opened = self._tokens.open(token)
        return opened, self._uplink.add(opened.state.unsettled)

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

    def _position(self, opened: OpenedToken, unsettled: list[training_pb2.Fact]) -> _Position:
        """Where the dialogue stands; an idle one goes on as a new one, linked to it."""
        state = opened.state
        position = _Position(
            dialogue_id=opened.dialogue_id,
            index=state.next_index,
            mode=state.mode or dialogue_pb2.TEACH,
            user=state.user,
            parent_id=state.decision_id,
            history=self._history(state),
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
        fact = facts.started(
            position.dialogue_id, position.user, position.mode, self._domain.fingerprint, continues=before
        )
        self._uplink.add([fact])
        position.unsettled.append(fact)

    def _history(self, state: token_pb2.TokenState) -> list[str]:
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

    # Decisions.

    def _gather(self, before: int, quiet_loops: int) -> None:
        """Answers what was asked, unless more has come since the last turn of the event loop."""
        waiting = len(self._waiting)
        quiet_loops = 0 if waiting > before else quiet_loops + 1
        if waiting < _MOST_AT_ONCE and quiet_loops < _QUIET_LOOPS:
            asyncio.get_running_loop().call_soon(self._gather, waiting, quiet_loops)
            return
        requests, self._waiting = self._waiting, []
        if batch := list(self._ask_all(requests)):
            self._answer(batch)

    def _ask_all(self, requests: Iterable[_Request]) -> Iterator[tuple[_AskedTurn, Answered]]:
        """The turns that can be answered at once; of the others is told what they want."""
        for request in requests:
            try:
                asked = self._ask(request)
            except Exception as error:  # noqa: BLE001 - told to whoever asked
                request.answered(told(error))
            else:
                if asked.needs_disk:
                    request.answered(partial(self._answer_by_disk, asked))
                else:
                    yield asked, request.answered

    def _ask(self, request: _Request) -> _AskedTurn:
        """Checks a request."""
        act = request.act
        opened, unsettled = self._open(act.token)
        self._check_age(opened.state)
        raw = self._checks.act(act)
        if self._policies.current is None:
            raise UnavailableError("this actor has no policy yet", reason="NO_POLICY")
        position = self._position(opened, unsettled)
        recorded = self._uplink.can_record
        needs_disk = recorded and not self._fits_token(position, act)
        secret = opened.key.secret
        return _AskedTurn(act, request.turn, raw, position, secret, recorded, needs_disk, request.came_at)

    def _answer(self, batch: Sequence[tuple[_AskedTurn, Answered]]) -> None:
        try:
            made = self._decide([asked for asked, _ in batch])
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            if len(batch) == 1:
                batch[0][1](told(error))
            else:  # somebody's observation is too much for the policy: the others need not suffer for it
                for each in batch:
                    self._answer([each])
            return
        for (asked, answered), fact in zip(batch, made, strict=True):
            try:
                if asked.recorded:
                    self._note(asked, fact)
                    self._carry(asked, fact)
                else:
                    self._hand_over(asked)
            except Exception as error:  # noqa: BLE001 - told to whoever asked
                answered(told(error))
            else:
                answered(None)

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

    def _carry(self, asked: _AskedTurn, fact: training_pb2.Fact) -> None:
        """The decision outlives this process in the token, and is on its way to the learner."""
        self._uplink.add([fact])
        asked.position.unsettled.append(fact)
        self._hand_over(asked)

    def _hand_over(self, asked: _AskedTurn) -> None:
        """Counts the turn, and seals the token that goes on from it."""
        position, turn = asked.position, asked.turn
        if asked.recorded:
            position.unrecorded.clear()
        else:
            position.unrecorded.append(turn.decision_id)
        self.counters.turns += 1
        self.counters.unrecorded_turns += not asked.recorded
        turn.token = self._seal_next(position, turn)
        self.latencies.add(time.perf_counter() - asked.came_at)

    # Settling.

    def _fits_token(self, position: _Position, request: dialogue_pb2.ActRequest) -> bool:
        """Whether a token can carry one more decision beside the facts that it carries already."""
        to_come = request.observation.ByteSize() + 5 * len(self._domain.action_ids) + _DECIDED_OVERHEAD_BYTES
        carried = sum([fact.ByteSize() for fact in position.unsettled])
        return len(position.unsettled) < self._config.max_facts and (
            carried + to_come <= self._config.max_fact_bytes
        )

    async def _spooled(self, unsettled: Sequence[training_pb2.Fact]) -> bool:
        try:
            await self._uplink.spool(unsettled)
        except SpoolFullError:
            return False
        return True

    async def _settle(self, unsettled: Sequence[training_pb2.Fact]) -> dialogue_pb2.Receipt:
        try:
            cursor = await self._uplink.settle(unsettled)
        except SpoolFullError as error:
            message = f"neither the learner nor the disk takes it now: {error}"
            raise UnavailableError(message, reason="NOT_RECORDED") from error
        except FactRefusedError as error:
            raise InternalError(f"the learner refused a fact of this request: {error}") from error
        if cursor is None:
            return dialogue_pb2.Receipt(settled=dialogue_pb2.Receipt.SPOOLED)
        return dialogue_pb2.Receipt(settled=dialogue_pb2.Receipt.LEARNER, journal_cursor=cursor)


def _resolve(
    answered: asyncio.Future[RequestError | Wait | None], outcome: RequestError | Wait | None
) -> None:
    if not answered.done():  # whoever asked may have gone
        answered.set_result(outcome)


def _teacher(named: str, user: str, caller: Principal | None) -> str:
    """Whose feedback it is: the caller's own, unless the caller speaks for others."""
    if caller is None:
        return named or user
    if caller.speaks_for_others:
        return named or user or caller.name
    if named not in ("", caller.name):
        raise TeacherError(
            f"teacher: got {named[:40]!r}; wanted {caller.name!r} or nothing: only frontends name others",
            reason="TEACHER_FOREIGN",
        )
    return caller.name


def describe(domain: Domain) -> dialogue_pb2.DomainDescription:
    """A domain as the wire has it."""
    low, high = domain.rewards.range
    description = dialogue_pb2.DomainDescription(
        name=domain.name,
        version=domain.version,
        fingerprint=domain.fingerprint,
        actions=[
            dialogue_pb2.DomainDescription.Action(id=action.id, say=action.say) for action in domain.actions
        ],
        text=domain.state.text is not None,
        features=domain.state.features,
        reward_min=low,
        reward_max=high,
        gamma=domain.gamma,
        idle_timeout_s=domain.dialogue.idle_timeout_s,
        max_turns=domain.dialogue.max_turns,
    )
    for name, slot in domain.state.slots.items():
        added = description.slots.add(name=name, type=slot.type)
        if slot.type == "category":
            added.categories.extend(slot.categories)
        elif slot.type == "number":
            added.min, added.max = slot.min, slot.max
    return description
