"""What an actor does with a request. Nothing about a dialogue is kept here: all of it is in the token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from turnwise.v1 import dialogue_pb2, token_pb2
from turnwise_actor import decisions, facts
from turnwise_actor.access.credentials import Principal
from turnwise_actor.checks import Checks
from turnwise_actor.config import TokenConfig
from turnwise_actor.errors import (
    InternalError,
    RequestError,
    TeacherError,
    TokenError,
    UnavailableError,
)
from turnwise_actor.facts import PackedFact, pack
from turnwise_actor.http2 import HTTP2
from turnwise_actor.latencies import Latencies
from turnwise_actor.policy import Domain, Encoder
from turnwise_actor.requests import Act
from turnwise_actor.spool import SpoolFullError
from turnwise_actor.tokens import Tokens
from turnwise_actor.turns import Answered, Counters, Outcome, Request, Turns
from turnwise_actor.uplink import FactRefusedError, Uplink
from turnwise_actor.weights import Policies

_MOST_AT_ONCE = 32
"""So many turns that wait are answered without looking for more: the others' requests wait meanwhile."""
_QUIET_LOOPS = 8 if HTTP2 is None else 1
"""... and after so many turns of the event loop that brought no further one. In one our own server hands over
all that its connections have brought; `grpc.aio` hands over one call, however many wait."""


class Dialogues:
    """The dialogue service without its transport. Errors are RequestErrors."""

    def __init__(
        self, domain: Domain, tokens: Tokens, policies: Policies, uplink: Uplink, config: TokenConfig
    ) -> None:
        encoder = Encoder(domain)
        self._domain = domain
        self._checks = Checks(domain, encoder, config.max_token_bytes)
        self._tokens = tokens
        self._uplink = uplink
        self._description = describe(domain)
        self._turns = Turns(domain, encoder, self._checks, tokens, policies, uplink, config)
        self._waiting: list[Request] = []
        self._asked = 0
        """Turns that they ask for."""

    @property
    def counters(self) -> Counters:
        """What the process has done since its start."""
        return self._turns.counters

    @property
    def latencies(self) -> Latencies:
        """How long turns took."""
        return self._turns.latencies

    @property
    def description(self) -> dialogue_pb2.DomainDescription:
        """The domain that is served."""
        return self._description

    async def start(self, request: dialogue_pb2.StartDialogueRequest) -> dialogue_pb2.StartDialogueReply:
        """Begins a dialogue: its first token carries the fact that it began."""
        self._checks.start(request)
        mode = request.mode or dialogue_pb2.TEACH
        begun = facts.started(request.dialogue_id, request.user, mode, self._domain.fingerprint)
        unsettled = self._uplink.add([pack(begun)])
        state = token_pb2.TokenState(
            issued_ms=facts.now_ms(),
            mode=mode,
            user=request.user,
            domain_fingerprint=self._domain.fingerprint,
        )
        token = self._tokens.seal(request.dialogue_id, state, unsettled)
        return dialogue_pb2.StartDialogueReply(
            dialogue_id=request.dialogue_id, token=token, domain=self._description
        )

    async def act(self, request: Act) -> bytes:
        """A Turn, serialized. Waits for nothing but, where its token has no room, until facts are settled."""
        answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.answer_soon([request], partial(_resolve, answered))
        outcome = await answered
        if isinstance(outcome, RequestError):
            raise outcome
        return outcome if isinstance(outcome, bytes) else await outcome()

    def answer_soon(self, acts: Sequence[Act], answered: Answered) -> None:
        """Answers as soon as nothing further is being asked, all of it together: that costs half."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._gather, 0, 0)
        self._waiting.append(Request(acts, answered, time.perf_counter()))
        self._asked += len(acts)

    async def give_feedback(
        self, request: dialogue_pb2.FeedbackRequest, caller: Principal | None = None
    ) -> dialogue_pb2.Receipt:
        """Feedback or a delivery; answers when it is settled."""
        self._checks.token(request.token, optional=True)
        user, unsettled, unrecorded = "", list[PackedFact](), list[str]()
        if request.token:
            opened, unsettled = self._turns.open(request.token)
            if not decisions.linked(opened.dialogue_id, request.dialogue_id):
                raise TokenError(
                    f"token: got one of {opened.dialogue_id!r}; wanted one of {request.dialogue_id!r}",
                    reason="TOKEN_FOREIGN",
                )
            user, unrecorded = opened.state.user, list(opened.state.unrecorded)
        self._checks.feedback(request)
        new = facts.from_feedback(request, _teacher(request.teacher, user, caller))
        new[0].unrecorded.extend(unrecorded)
        return await self._settle([*unsettled, *map(pack, new)])

    async def end(
        self, request: dialogue_pb2.EndRequest, caller: Principal | None = None
    ) -> dialogue_pb2.Receipt:
        """Ends a dialogue; answers when that is settled."""
        opened, unsettled = self._turns.open(request.token)
        self._checks.end(request)
        state, dialogue_id = opened.state, opened.dialogue_id
        new = [facts.ended(request, dialogue_id, state.decision_id, self._turns.history(state))]
        new[0].unrecorded.extend(state.unrecorded)
        if request.HasField("reward"):
            new.append(facts.dialogue_reward(request, dialogue_id, _teacher("", state.user, caller)))
        return await self._settle([*unsettled, *map(pack, new)])

    def _gather(self, before: int, quiet_loops: int) -> None:
        """Answers what was asked, unless more has come since the last turn of the event loop."""
        asked = self._asked
        quiet_loops = 0 if asked > before else quiet_loops + 1
        if asked < _MOST_AT_ONCE and quiet_loops < _QUIET_LOOPS:
            asyncio.get_running_loop().call_soon(self._gather, asked, quiet_loops)
            return
        requests, self._waiting, self._asked = self._waiting, [], 0
        self._turns.answer(requests)

    async def _settle(self, unsettled: Sequence[PackedFact]) -> dialogue_pb2.Receipt:
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


def _resolve(answered: asyncio.Future[Outcome], outcomes: list[Outcome]) -> None:
    if not answered.done():  # whoever asked may have gone
        answered.set_result(outcomes[0])


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
