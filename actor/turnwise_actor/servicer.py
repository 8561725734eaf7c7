"""The Dialogue service on gRPC: every call, unary or on a stream, goes through `Dialogues`."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NoReturn, TypeVar

import grpc.aio

from turnwise.v1 import dialogue_pb2
from turnwise.v1.dialogue_pb2_grpc import DialogueServicer
from turnwise_actor.access.credentials import Principal
from turnwise_actor.access.guard import caller
from turnwise_actor.config import StreamConfig
from turnwise_actor.conversation import Conversation, unknown_request
from turnwise_actor.dialogues import Dialogues
from turnwise_actor.errors import DETAILS_KEY, InternalError, OverloadError, RequestError, UnavailableError

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Reply = TypeVar("Reply")

logger = logging.getLogger(__name__)


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

    async def Act(self, request: dialogue_pb2.ActRequest, context: Context) -> dialogue_pb2.Turn:  # noqa: D102
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

    # Reads and writes through the context, which grpc.aio allows as well as yielding.
    async def Converse(  # type: ignore[override]  # noqa: D102
        self, request_iterator: object, context: Context
    ) -> None:
        who = caller()
        answer = partial(self._answer, who=who)
        conversation = Conversation(context.read, context.write, answer, self._config)
        self.streams += 1
        try:
            await conversation.run(self._life_s(who), self._draining)
        finally:
            self.streams -= 1

    def _life_s(self, who: Principal | None) -> float:
        """Age at which a stream is asked to move: in good time before its credential expires."""
        life_s = self._config.life_s + random.uniform(-1.0, 1.0) * self._config.life_jitter_s
        if who is None:
            return life_s
        return max(0.0, min(life_s, who.expires - time.time() - self._config.move_s))

    async def _describe(self, request: dialogue_pb2.DescribeDomainRequest) -> dialogue_pb2.DomainDescription:
        return self._dialogues.description

    async def _answer(
        self, request: dialogue_pb2.ConverseRequest, who: Principal | None
    ) -> dialogue_pb2.ConverseReply:
        _check_rate(who)
        reply = dialogue_pb2.ConverseReply(correlation_id=request.correlation_id)
        match request.WhichOneof("request"):
            case "act":
                reply.turn.CopyFrom(await self._dialogues.act(request.act))
            case "feedback":
                reply.receipt.CopyFrom(await self._dialogues.give_feedback(request.feedback, who))
            case "start":
                reply.started.CopyFrom(await self._dialogues.start(request.start))
            case "end":
                reply.receipt.CopyFrom(await self._dialogues.end(request.end, who))
            case _:
                raise unknown_request()
        return reply

    async def _unary(
        self, answer: Callable[[Request], Awaitable[Reply]], request: Request, context: Context
    ) -> Reply:
        if self.draining:
            error = UnavailableError("this actor is shutting down; retry at another", reason="DRAINING")
            await _abort(context, error)
        try:
            _check_rate(caller())
            return await answer(request)
        except RequestError as error:
            await _abort(context, error)
        except Exception:
            logger.exception("a call failed")
            await _abort(context, InternalError("a fault of the actor; its log tells more"))


def _check_rate(who: Principal | None) -> None:
    if who is not None and not who.bucket.take():
        raise OverloadError(
            f"{who.name} sends more than its {who.bucket.rate:g} requests a second at this actor: "
            "send fewer, or have its `rate` in the credential file raised",
            reason="RATE_LIMIT",
        )


async def _abort(context: Context, error: RequestError) -> NoReturn:
    details = (DETAILS_KEY, error.to_status().SerializeToString())
    await context.abort(error.code, error.message, trailing_metadata=(details,))
    raise AssertionError("abort raises")
