"""A frontend as simple as can be: generated stubs over a real channel."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import status_pb2
from turnwise.v1.dialogue_pb2_grpc import DialogueStub

_numbers = itertools.count(1)


def fresh(prefix: str) -> str:
    """An id not used before in this process."""
    return f"{prefix}-{next(_numbers)}"


def seen(
    text: str = "hello", features: tuple[float, ...] = (0.0, 0.0), **slots: str | float | bool
) -> pb.Observation:
    observation = pb.Observation(text=text, features=struct.pack(f"<{len(features)}f", *features))
    for name, value in slots.items():
        slot = observation.slots.add(name=name)
        if isinstance(value, bool):
            slot.flag = value
        elif isinstance(value, str):
            slot.category = value
        else:
            slot.number = value
    return observation


@dataclass(frozen=True)
class Refusal:
    """What a refused call says."""

    code: str
    message: str
    reason: str
    violations: dict[str, str]


def read_status(status: status_pb2.Status) -> Refusal:
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    reason, violations = "", {}
    for detail in status.details:
        if detail.type_url == "type.googleapis.com/google.rpc.ErrorInfo":
            info = status_pb2.ErrorInfo.FromString(detail.value)
            assert info.domain == "turnwise"
            reason = info.reason
        else:
            assert detail.type_url == "type.googleapis.com/google.rpc.BadRequest"
            bad = status_pb2.BadRequest.FromString(detail.value)
            violations = {each.field: each.description for each in bad.field_violations}
    return Refusal(codes[status.code], status.message, reason, violations)


async def refusal(call: Awaitable[Any]) -> Refusal:
    """The refusal of a call that must fail."""
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        metadata = dict(error.trailing_metadata() or ())
        told = read_status(status_pb2.Status.FromString(metadata["grpc-status-details-bin"]))
        assert told.code == error.code().name
        assert told.message == error.details()
        return told
    raise AssertionError(f"answered: {reply}")


class Frontend:
    """One actor, called over the unary calls."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub: Any = DialogueStub(channel)

    async def start(
        self, dialogue_id: str = "", mode: Any = pb.TEACH, user: str = "ann"
    ) -> pb.StartDialogueReply:
        request = pb.StartDialogueRequest(dialogue_id=dialogue_id or fresh("dialogue"), user=user, mode=mode)
        return await self.stub.StartDialogue(request)

    async def act(
        self, token: bytes, observation: pb.Observation | None = None, request_id: str = "", allowed: Any = ()
    ) -> pb.Turn:
        return await self.stub.Act(
            pb.ActRequest(
                token=token,
                observation=observation or seen(),
                allowed=allowed,
                request_id=request_id or fresh("request"),
            )
        )

    async def feedback(self, turn: pb.Turn, **fields: Any) -> pb.Receipt:
        fields = {
            "dialogue_id": turn.dialogue_id,
            "decision_id": turn.decision_id,
            "token": turn.token,
            "feedback_id": fresh("feedback"),
            "revision": 1,
            **fields,
        }
        return await self.stub.GiveFeedback(pb.FeedbackRequest(**fields))

    async def end(self, token: bytes, outcome: str = "success", **fields: Any) -> pb.Receipt:
        fields = {"token": token, "outcome": outcome, "request_id": fresh("end"), "revision": 1, **fields}
        return await self.stub.EndDialogue(pb.EndRequest(**fields))
