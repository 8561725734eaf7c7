"""What an actor does with a request. Nothing about a dialogue is kept here: all of it is in the token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turnwise.v1 import dialogue_pb2, token_pb2, training_pb2
from turnwise_actor import decisions, facts
from turnwise_actor.access.credentials import Principal
from turnwise_actor.branches import Branches
from turnwise_actor.checks import Checks
from turnwise_actor.config import TokenConfig
from turnwise_actor.errors import (
    InternalError,
    PreconditionError,
    TeacherError,
    TokenError,
    UnavailableError,
)
from turnwise_actor.policy import Domain, Encoder, ModeExploration, Policy, RawObservation, decision_seed
from turnwise_actor.spool import SpoolFullError
from turnwise_actor.tokens import OpenedToken, Tokens
from turnwise_actor.uplink import FactRefusedError, Uplink
from turnwise_actor.weights import Policies, version_message

_DECIDED_OVERHEAD_BYTES = 512
"""What a Decided fact holds beside its observation and probabilities, roughly, from above."""


@dataclass
class Counters:
    """What the process has done since its start."""

    turns: int = 0
    unrecorded_turns: int = 0


@dataclass
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
        self.counters = Counters()

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
            unsettled=[fact],
            domain_fingerprint=self._domain.fingerprint,
        )
        token = self._tokens.seal(request.dialogue_id, state)
        return dialogue_pb2.StartDialogueReply(
            dialogue_id=request.dialogue_id, token=token, domain=self._description
        )

    async def act(self, request: dialogue_pb2.ActRequest) -> dialogue_pb2.Turn:
        """Answers one turn; waits for nothing but, when the token has grown too large, the spool's fsync."""
        opened = self._open(request.token)
        self._check_age(opened.state)
        raw = self._checks.act(request)
        policy = self._policies.current
        if policy is None:
            raise UnavailableError("this actor has no policy yet", reason="NO_POLICY")
        position = self._position(opened)
        turn = await self._answer(request, raw, policy, position, opened.key.secret)
        self.counters.turns += 1
        self.counters.unrecorded_turns += not turn.recorded
        turn.token = self._seal_next(position, turn)
        return turn

    async def give_feedback(
        self, request: dialogue_pb2.FeedbackRequest, caller: Principal | None = None
    ) -> dialogue_pb2.Receipt:
        """Feedback or a delivery; answers when it is settled."""
        self._checks.token(request.token, optional=True)
        user, unsettled, unrecorded = "", list[training_pb2.Fact](), list[str]()
        if request.token:
            opened = self._open(request.token)
            if not decisions.linked(opened.dialogue_id, request.dialogue_id):
                raise TokenError(
                    f"token: got one of {opened.dialogue_id!r}; wanted one of {request.dialogue_id!r}",
                    reason="TOKEN_FOREIGN",
                )
            user = opened.state.user
            unsettled, unrecorded = self._unsettled(opened.state), list(opened.state.unrecorded)
        self._checks.feedback(request)
        new = facts.from_feedback(request, _teacher(request.teacher, user, caller))
        new[0].unrecorded.extend(unrecorded)
        return await self._settle([*unsettled, *new])

    async def end(
        self, request: dialogue_pb2.EndRequest, caller: Principal | None = None
    ) -> dialogue_pb2.Receipt:
        """Ends a dialogue; answers when that is settled."""
        opened = self._open(request.token)
        self._checks.end(request)
        state, dialogue_id = opened.state, opened.dialogue_id
        new = [facts.ended(request, dialogue_id, state.decision_id, self._history(state))]
        new[0].unrecorded.extend(state.unrecorded)
        if request.HasField("reward"):
            new.append(facts.dialogue_reward(request, dialogue_id, _teacher("", state.user, caller)))
        return await self._settle([*self._unsettled(state), *new])

    # Tokens.

    def _open(self, token: bytes) -> OpenedToken:
        """Opens a token and sends its unsettled facts on, whatever else is wrong with the request."""
        self._checks.token(token)
        opened = self._tokens.open(token)
        self._uplink.add(self._unsettled(opened.state))
        return opened

    def _unsettled(self, state: token_pb2.TokenState) -> list[training_pb2.Fact]:
        return [fact for fact in state.unsettled if not self._uplink.is_settled(fact.key)]

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

    def _position(self, opened: OpenedToken) -> _Position:
        """Where the dialogue stands; an idle one goes on as a new one, linked to it."""
        state = opened.state
        position = _Position(
            dialogue_id=opened.dialogue_id,
            index=state.next_index,
            mode=state.mode or dialogue_pb2.TEACH,
            user=state.user,
            parent_id=state.decision_id,
            history=self._history(state),
            unsettled=self._unsettled(state),
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
            unsettled=position.unsettled,
            domain_fingerprint=self._domain.fingerprint,
            unrecorded=position.unrecorded,
        )
        return self._tokens.seal(position.dialogue_id, state)

    # Decisions.

    async def _answer(
        self,
        request: dialogue_pb2.ActRequest,
        raw: RawObservation,
        policy: Policy,
        position: _Position,
        secret: bytes,
    ) -> dialogue_pb2.Turn:
        """Decides, and sees to it that the decision outlives this process: in the token or on the disk."""
        size = self._size_of_decided(request)
        if self._uplink.can_record and await self._make_room(position, size):
            turn, fact = self._decide(request, raw, policy, position, secret, recorded=True)
            self._branches.add(position.dialogue_id, position.parent_id, turn.decision_id)
            fact.unrecorded.extend(position.unrecorded)
            if size <= self._config.max_fact_bytes:
                self._uplink.add([fact])
                position.unsettled.append(fact)
                position.unrecorded.clear()
                return turn
            if await self._spooled([fact]):
                position.unrecorded.clear()
                return turn
        turn = self._decide(request, raw, policy, position, secret, recorded=False)[0]
        position.unrecorded.append(turn.decision_id)
        return turn

    def _decide(
        self,
        request: dialogue_pb2.ActRequest,
        raw: RawObservation,
        policy: Policy,
        position: _Position,
        secret: bytes,
        recorded: bool,
    ) -> tuple[dialogue_pb2.Turn, training_pb2.Fact]:
        """The turn, its token excepted, and the fact of it. What is not recorded is greedy."""
        seed = decision_seed(secret, position.dialogue_id, position.index, request.request_id, policy.version)
        mask = decisions.allowed_mask(self._domain, request.allowed)
        mode_name = dialogue_pb2.Mode.Name(position.mode)
        exploration = policy.exploration.of(mode_name) if recorded else ModeExploration()
        encoded = self._encoder.encode(raw, position.history)
        try:
            choice = decisions.choose(policy, encoded, mask, exploration, seed)
        except ValueError as error:
            raise InternalError(f"policy {policy.version} gives no usable values here: {error}") from error
        action = self._domain.action_ids[choice.action]
        allowed = decisions.pack_mask(mask)
        decided = training_pb2.Decided(
            decision_id=decisions.decision_id(
                position.dialogue_id,
                position.parent_id,
                request.observation,
                allowed,
                action,
                str(policy.version),
            ),
            parent_id=position.parent_id,
            index=position.index,
            observation=request.observation,
            history=position.history,
            allowed=allowed,
            action=action,
            probabilities=choice.probabilities.astype("<f4").tobytes(),
            policy_version=version_message(policy.version),
            domain_fingerprint=self._domain.fingerprint,
            mode=position.mode,
            recorded=recorded,
        )
        turn = dialogue_pb2.Turn(
            dialogue_id=position.dialogue_id,
            index=position.index,
            decision_id=decided.decision_id,
            action=action,
            say=decisions.say_for(self._domain, choice.action, seed),
            probability=float(choice.probabilities[choice.action]),
            q_values=choice.q_values.astype("<f4").tobytes(),
            policy_version=decided.policy_version,
            learned_through=policy.learned_through,
            recorded=recorded,
            domain_fingerprint=self._domain.fingerprint,
        )
        return turn, facts.decided(position.dialogue_id, decided)

    # Settling.

    def _size_of_decided(self, request: dialogue_pb2.ActRequest) -> int:
        """Bytes of the fact to come, from above."""
        return request.observation.ByteSize() + 5 * len(self._domain.action_ids) + _DECIDED_OVERHEAD_BYTES

    async def _make_room(self, position: _Position, size: int) -> bool:
        """Spools a token's facts when it cannot carry one more of this size; False: the disk is full."""
        carried = sum(fact.ByteSize() for fact in position.unsettled)
        few = len(position.unsettled) < self._config.max_facts
        if not position.unsettled or (few and carried + size <= self._config.max_fact_bytes):
            return True
        if not await self._spooled(position.unsettled):
            return False
        position.unsettled.clear()
        return True

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
