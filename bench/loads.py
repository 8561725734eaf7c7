"""What asks for turns: sessions over streams and calls, the SDK, a teacher; and the same loads of bytes."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import grpc.aio
import numpy as np

import turnwise
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1.dialogue_pb2_grpc import DialogueStub
from turnwise_deploy.local import DeploymentError

CONNECTIONS, SESSIONS = 8, 8
FEATURES = 128
RATED_PER_S = 5.0
"""Lessons while turns are measured, so that the learner learns and publishes."""
_ALONE = [("grpc.use_local_subchannel_pool", 1)]
"""Else all channels of this process would share one connection."""


_OBSERVATIONS = [
    pb.Observation(features=row.tobytes())
    for row in np.random.default_rng(0).standard_normal((64, FEATURES)).astype("<f4")
]
_ROWS: list[list[float]] = [np.frombuffer(seen.features, "<f4").tolist() for seen in _OBSERVATIONS]


def observation(number: int) -> pb.Observation:
    """One of a few."""
    return _OBSERVATIONS[number % len(_OBSERVATIONS)]


def observation_row(number: int) -> list[float]:
    """The same as the SDK wants it."""
    return _ROWS[number % len(_ROWS)]


@dataclass
class Session:
    """One dialogue of the load."""

    token: bytes
    turns: int = 0

    def request(self) -> pb.ActRequest:
        """The next turn."""
        self.turns += 1
        return pb.ActRequest(
            token=self.token, observation=observation(self.turns), request_id=f"r{self.turns}"
        )


class Rotation:
    """Several dialogues that take turns, one after the other; to a load it is one session."""

    def __init__(self, sessions: Sequence[Session]) -> None:
        self._next = cycle(sessions)
        self._speaking = sessions[0]

    def request(self) -> pb.ActRequest:
        """The next turn of the next dialogue."""
        self._speaking = next(self._next)
        return self._speaking.request()

    @property
    def token(self) -> bytes:
        """Of the dialogue that has spoken last."""
        return self._speaking.token

    @token.setter
    def token(self, token: bytes) -> None:
        self._speaking.token = token


Speaker = Session | Rotation


@dataclass
class Sizes:
    """Of the messages that really went over the stream."""

    requests: list[int] = field(default_factory=list)
    replies: list[int] = field(default_factory=list)


Until = Callable[[int], bool]
"""Given the turns so far: whether the load is to end."""


def after(seconds: float) -> Until:
    """A while from now."""
    end = time.monotonic() + seconds
    return lambda turns: time.monotonic() >= end


@asynccontextmanager
async def connections(
    addresses: tuple[str, ...], count: int = CONNECTIONS
) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Of the load, spread over the addresses; closed afterwards."""
    channels = [grpc.aio.insecure_channel(addresses[i % len(addresses)], _ALONE) for i in range(count)]
    try:
        yield channels
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def begin(address: str, count: int) -> list[Session]:
    """Dialogues that have just begun."""
    async with grpc.aio.insecure_channel(address, _ALONE) as channel:
        stub = DialogueStub(channel)
        begun = [
            await stub.StartDialogue(pb.StartDialogueRequest(dialogue_id=f"bench-{os.urandom(8).hex()}"))
            for _ in range(count)
        ]
    return [Session(reply.token) for reply in begun]


async def stream_turns(
    addresses: tuple[str, ...], sessions: Sequence[Speaker], until: Until, sizes: Sizes | None = None
) -> int:
    """Each connection has its share of the sessions, each session one request in flight; turns answered."""
    done = 0

    async def converse(channel: grpc.aio.Channel, mine: Sequence[Speaker]) -> None:
        nonlocal done
        call = DialogueStub(channel).Converse()

        async def ask(number: int) -> None:
            request = pb.ConverseRequest(correlation_id=number + 1, act=mine[number].request())
            if sizes is not None:
                sizes.requests.append(request.ByteSize())
            await call.write(request)

        for number in range(len(mine)):
            await ask(number)
        waiting = len(mine)
        while waiting:
            reply = await call.read()
            if reply.WhichOneof("reply") != "turn":
                raise DeploymentError(f"the actor answered {reply}")
            if sizes is not None:
                sizes.replies.append(reply.ByteSize())
            mine[reply.correlation_id - 1].token = reply.turn.token
            done += 1
            if until(done):
                waiting -= 1
            else:
                await ask(reply.correlation_id - 1)
        await call.done_writing()

    shares = [sessions[i::CONNECTIONS] for i in range(CONNECTIONS)]
    async with connections(addresses) as channels:
        await asyncio.gather(*map(converse, channels, shares))
    return done


async def stream_echo(address: str, request: bytes, until: Until) -> int:
    """As `stream_turns`, of the echo."""
    done = 0

    async def converse(channel: grpc.aio.Channel) -> None:
        nonlocal done
        call = channel.stream_stream("/bench.Echo/Converse")()
        for _ in range(SESSIONS):
            await call.write(request)
        waiting = SESSIONS
        while waiting:
            await call.read()
            done += 1
            if until(done):
                waiting -= 1
            else:
                await call.write(request)
        await call.done_writing()

    async with connections((address,)) as channels:
        await asyncio.gather(*map(converse, channels))
    return done


async def unary_turns(address: str, sessions: list[Session], until: Until) -> int:
    """A call a turn."""
    done = 0

    async def talk(stub: Any, session: Session) -> None:
        nonlocal done
        while not until(done):
            session.token = (await stub.Act(session.request())).token
            done += 1

    async with connections((address,)) as channels:
        stubs = [DialogueStub(channel) for channel in channels]
        await asyncio.gather(*(talk(stubs[i % CONNECTIONS], one) for i, one in enumerate(sessions)))
    return done


async def unary_echo(address: str, request: bytes, until: Until) -> int:
    """A call an echo."""
    done = 0

    async def call(act: Any) -> None:
        nonlocal done
        while not until(done):
            await act(request)
            done += 1

    async with connections((address,)) as channels:
        acts = [channel.unary_unary("/bench.Echo/Act") for channel in channels]
        await asyncio.gather(*(call(acts[i % CONNECTIONS]) for i in range(CONNECTIONS * SESSIONS)))
    return done


async def sdk_turns(bot: turnwise.AsyncClient, until: Until) -> int:
    """64 dialogues over the SDK in one process, which coalesces what they ask at the same time."""
    done = 0

    async def talk(number: int) -> None:
        nonlocal done
        dialogue = bot.dialogue(mode="serve")
        while not until(done):
            number += 1
            await dialogue.act(features=observation_row(number))
            done += 1
        await dialogue.end(outcome="goodbye")

    await asyncio.gather(*map(talk, range(CONNECTIONS * SESSIONS)))
    return done


@asynccontextmanager
async def teacher(address: str) -> AsyncIterator[None]:
    """Somebody who rates a few turns a second."""

    async def teach() -> None:
        async with turnwise.AsyncClient(address) as bot, bot.dialogue(user="teacher") as talk:
            while True:
                turn = await talk.act(features=[0.5] * FEATURES)
                await turn.reward(1)
                await asyncio.sleep(1 / RATED_PER_S)

    teaching = asyncio.create_task(teach())
    try:
        yield
    finally:
        teaching.cancel()
        with suppress(asyncio.CancelledError):
            await teaching
