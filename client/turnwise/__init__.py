"""Turnwise's client: ask a bot what to do next, and tell it how good that was.

    import turnwise

    with turnwise.Client("localhost:50051") as bot, bot.dialogue(user="ann") as talk:
        turn = talk.act(text="hello", slots={"intent": "greet"})
        print(turn.say)
        turn.reward(+1)
        talk.end(outcome="success")

`AsyncClient` has the same names, awaited. Every error is a `TurnwiseError`. `turnwise.testing.FakeActor`
is an actor with scripted actions for tests. This package needs grpcio and protobuf only.
"""

from turnwise._aio import AsyncClient
from turnwise._client import Client
from turnwise._dialogue import AsyncDialogue, AsyncTurn, Dialogue, Turn
from turnwise._errors import (
    AccessDenied,
    ActorUnavailable,
    Cancelled,
    ClientClosed,
    Conflict,
    DeadlineExceeded,
    DialogueEnded,
    InvalidRequest,
    NotFound,
    NotReady,
    NotSupported,
    Overloaded,
    ServerFault,
    TokenError,
    TokenExpired,
    TokenRejected,
    TurnwiseError,
    UnexpectedReply,
    Violation,
)
from turnwise._replies import Domain, PolicyVersion, Receipt, Slot
from turnwise._routing import Counters

__all__ = [
    "AccessDenied",
    "ActorUnavailable",
    "AsyncClient",
    "AsyncDialogue",
    "AsyncTurn",
    "Cancelled",
    "Client",
    "ClientClosed",
    "Conflict",
    "Counters",
    "DeadlineExceeded",
    "Dialogue",
    "DialogueEnded",
    "Domain",
    "InvalidRequest",
    "NotFound",
    "NotReady",
    "NotSupported",
    "Overloaded",
    "PolicyVersion",
    "Receipt",
    "ServerFault",
    "Slot",
    "TokenError",
    "TokenExpired",
    "TokenRejected",
    "Turn",
    "TurnwiseError",
    "UnexpectedReply",
    "Violation",
]
