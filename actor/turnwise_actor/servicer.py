"""The Dialogue service on gRPC: every call, unary or on a stream, goes through `Dialogues`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import grpc.aio

from turnwise.v1 import dialogue_pb2
from turnwise.v1.dialogue_pb2 import ConverseReply
from turnwise.v1.dialogue_pb2_grpc import DialogueServicer
from turnwise_actor.access.credentials import Principal
from turnwise_actor.access.guard import caller
from turnwise_actor.config import StreamConfig
from turnwise_actor.conversation import Acted, Answering, Conversation, Done, unknown_request
from turnwise_actor.dialogues import Dialogues
from turnwise_actor.errors import DETAILS_KEY, OverloadError, RequestError, UnavailableError, told
from turnwise_actor.http2.call import Call
from turnwise_actor.parts import with_parts
from turnwise_actor.requests import Act, PlainAct
from turnwise_actor.turns import Outcome, Wait
from turnwise_actor.wires import AioWire

Context = grpc.aio.ServicerContext[Any, Any]
Asked = TypeVar("Asked")
Reply = TypeVar("Reply")


class ActorServicer(DialogueServicer):
    """Speaks gRPC for `Dialogues`, and knows which streams are open."""

    def __init__(self, dialogues: Dialogues, config: StreamConfig) -> None:
        self._dialogues = dialogues
        self._config = config
        self._draining = asyncio.Event()
        self.streams = 0

    @property
    def draining(self) -> bool:
        """Whether new work is refused."""
        return self._draining.is_set()

    def drain(self) -> None:
        """Asks every stream to move; new calls are refused."""
        self._draining.set()

    async def StartDialogue(  # noqa: D102
        self, request: dialogue_pb2.StartDialogueRequest, context: Context
    ) -> dialogue_pb2.StartDialogueReply:
        return await self._unary(self._dialogues.start, request, context)

    # A Turn that is serialized already.
    async def Act(  # type: ignore[override]  # noqa: D102
        self, request: Act, context: Context
    ) -> bytes:
        return await self._unary(self._dialogues.act, request, context)

    async def GiveFeedback(  # noqa: D102
        self, request: dialogue_pb2.FeedbackRequest, context: Context
    ) -> dialogue_pb2.Receipt:
        return await self._unary(partial(self._dialogues.give_feedback, caller=caller()), request, context)

    async def EndDialogue(  # noqa: D102
        self, request: dialogue_pb2.EndRequest, context: Context
    ) -> dialogue_pb2.Receipt:
        return await self._unary(partial(self._dialogues.end, caller=caller()), request, context)

    async def DescribeDomain(  # noqa: D102
        self, request: dialogue_pb2.DescribeDomainRequest, context: Context
    ) -> dialogue_pb2.DomainDescription:
        return await self._unary(self._describe, request, context)

    # Reads and writes by itself, which grpc.aio allows as well as yielding.
    async def Converse(  # type: ignore[override]  # noqa: D102
        self, request_iterator: object, context: Context
    ) -> None:
        who = caller()
        act, answer = partial(self._act, who=who), partial(self._answer, who=who)
        wire = context if isinstance(context, Call) else AioWire(context)
        conversation = Conversation(wire, act, answer, self._config)
        self.streams += 1
        try:
            await conversation.run(self._life_s(who), self._draining)
        finally:
            self.streams -= 1
            if isinstance(wire, AioWire):
                await wire.close()

    def _life_s(self, who: Principal | None) -> float:
        """Age at which a stream is asked to move: in good time before its credential expires."""
        life_s = self._config.life_s + random.uniform(-1.0, 1.0) * self._config.life_jitter_s
        if who is None:
            return life_s
        return max(0.0, min(life_s, who.expires - time.time() - self._config.move_s))

    async def _describe(self, request: dialogue_pb2.DescribeDomainRequest) -> dialogue_pb2.DomainDescription:
        return self._dialogues.description

    def _act(self, acts: Sequence[PlainAct], acted: Acted, who: Principal | None) -> None:
        if who is not None and (passed := who.bucket.take(len(acts))) < len(acts):
            acted(acts[passed:], [_too_fast(who)] * (len(acts) - passed))
            acts = acts[:passed]
        if acts:
            self._dialogues.answer_soon(acts, partial(acted, acts))

    def _answer(
        self, request: dialogue_pb2.ConverseRequest, done: Done, who: Principal | None
    ) -> Answering | None:
        _check_rate(who)
        number = request.correlation_id
        match request.WhichOneof("request"):
            case "act":
                self._dialogues.answer_soon([request.act], partial(_answered, number, done))
                return None
            case "feedback":
                return _received(number, self._dialogues.give_feedback(request.feedback, who))
            case "end":
                return _received(number, self._dialogues.end(request.end, who))
            case "start":
                return _started(number, self._dialogues.start(request.start))
        raise unknown_request()

    async def _unary(
        self, answer: Callable[[Asked], Awaitable[Reply]], request: Asked, context: Context
    ) -> Reply:
        if self.draining:
            error = UnavailableError("this actor is shutting down; retry at another", reason="DRAINING")
            await _abort(context, error)
        try:
            _check_rate(caller())
            return await answer(request)
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            await _abort(context, told(error))


def _answered(number: int, done: Done, outcomes: list[Outcome]) -> None:
    """Makes a reply of the only turn."""
    outcome = outcomes[0]
    if isinstance(outcome, bytes):
        done(_with_turn(number, outcome))
    else:
        done(outcome if isinstance(outcome, RequestError) else partial(_turn, number, outcome))


def _with_turn(number: int, turn: bytes) -> bytes:
    return with_parts(ConverseReply(correlation_id=number), ConverseReply.TURN_FIELD_NUMBER, [turn])


async def _turn(number: int, turn: Wait) -> bytes:
    return _with_turn(number, await turn())


async def _received(number: int, receipt: Awaitable[dialogue_pb2.Receipt]) -> bytes:
    return ConverseReply(correlation_id=number, receipt=await receipt).SerializeToString()


async def _started(number: int, started: Awaitable[dialogue_pb2.StartDialogueReply]) -> bytes:
    return ConverseReply(correlation_id=number, started=await started).SerializeToString()


def _check_rate(who: Principal | None) -> None:
    if who is not None and not who.bucket.take():
        raise _too_fast(who)


def _too_fast(who: Principal) -> OverloadError:
    return OverloadError(
        f"{who.name} sends more than its {who.bucket.rate:g} requests a second at this actor: "
        "send fewer, or have its `rate` in the credential file raised",
        reason="RATE_LIMIT",
    )


async def _abort(context: Context, error: RequestError) -> NoReturn:
    details = (DETAILS_KEY, error.to_status().SerializeToString())
    await context.abort(error.code, error.message, trailing_metadata=(details,))
    raise AssertionError("abort raises")
