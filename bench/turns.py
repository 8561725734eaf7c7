"""What a turn costs the actor, against the least that a message can cost on grpc.aio.

The actor is the product's, as `turnwise up` starts it, with a learner behind it that learns meanwhile: tokens
are opened and sealed, requests checked, 128 features go through a network of [256, 256] for 64 actions,
decisions go to the journal. The echo answers bytes of the same sizes and does nothing else. All are measured
in CPU-seconds of the server process, in turn, by the same 8 connections of 8 sessions each.

`--short`: about two minutes.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import yaml

import turnwise
from processes import cpu_s, holding
from report import Report, say, spread
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1.dialogue_pb2_grpc import DialogueStub
from turnwise_deploy.local import DeploymentError, LocalConfig, LocalDeployment

GOALS = {
    "stream_vs_echo": 0.65,
    "unary_vs_echo": 0.65,
    "coalesced_vs_echo": 1.5,
    "two_processes": 0.9,
}
CONNECTIONS, SESSIONS = 8, 8
FEATURES, ACTIONS, HIDDEN = 128, 64, [256, 256]
RATED_PER_S = 5.0
"""Lessons while turns are measured, so that the learner learns and publishes."""
YOUNG, OLD, AGED_TURNS = 5, 500, 100
COLD_STARTS = 5
_ALONE = [("grpc.use_local_subchannel_pool", 1)]
"""Else all channels of this process would share one connection."""


def write_domain(folder: Path) -> Path:
    """Raw features, many actions, dialogues that need not end."""
    domain = {
        "name": "bench",
        "state": {"features": FEATURES},
        "actions": [{"id": f"action_{i}", "say": f"Answer {i}."} for i in range(ACTIONS)],
        "dialogue": {"max_turns": 1_000_000},
        "learning": {"gamma": 0.0, "hidden": HIDDEN},
    }
    path = folder / "domain.yaml"
    path.write_text(yaml.safe_dump(domain, sort_keys=False))
    return path


_OBSERVATIONS = [
    pb.Observation(features=row.tobytes())
    for row in np.random.default_rng(0).standard_normal((64, FEATURES)).astype("<f4")
]


@dataclass
class Session:
    """One dialogue of the load."""

    token: bytes
    turns: int = 0

    def request(self) -> pb.ActRequest:
        """The next turn."""
        self.turns += 1
        seen = _OBSERVATIONS[self.turns % len(_OBSERVATIONS)]
        return pb.ActRequest(token=self.token, observation=seen, request_id=f"r{self.turns}")


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
    addresses: tuple[str, ...], sessions: list[Session], until: Until, sizes: Sizes | None = None
) -> int:
    """Each connection has its share of the sessions, each session one request in flight; turns answered."""
    done = 0

    async def converse(channel: grpc.aio.Channel, mine: list[Session]) -> None:
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
    rows = [np.frombuffer(seen.features, "<f4").tolist() for seen in _OBSERVATIONS]

    async def talk(number: int) -> None:
        nonlocal done
        dialogue = bot.dialogue(mode="serve")
        while not until(done):
            number += 1
            await dialogue.act(features=rows[number % len(rows)])
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


@dataclass
class Bench:
    """A deployment, an echo, and what was measured of them: microseconds of server CPU a turn."""

    up: LocalDeployment
    cost_us: dict[str, list[float]] = field(default_factory=dict)
    per_s: dict[str, list[float]] = field(default_factory=dict)
    client_us: dict[str, list[float]] = field(default_factory=dict)

    def pids(self, actors: int) -> list[int]:
        """Of the first actors."""
        return [pid for pid in map(self.up.pids().get, self.up.actors[:actors]) if pid]

    async def take(self, name: str, pids: list[int], load: Callable[[], Awaitable[int]]) -> None:
        """One round of a load."""
        before, own, began = sum(map(cpu_s, pids)), time.process_time(), time.monotonic()
        turns = await load()
        seconds = time.monotonic() - began
        self.cost_us.setdefault(name, []).append(1e6 * (sum(map(cpu_s, pids)) - before) / turns)
        self.client_us.setdefault(name, []).append(1e6 * (time.process_time() - own) / turns)
        self.per_s.setdefault(name, []).append(turns / seconds)

    def ratio(self, limit: str, of: str) -> float:
        """How much cheaper the limit is: median over the rounds."""
        pairs = zip(self.cost_us[limit], self.cost_us[of], strict=True)
        return statistics.median(least / cost for least, cost in pairs)


@contextmanager
def echo(reply_bytes: int) -> Iterator[tuple[str, int]]:
    """Its address and pid."""
    command = [sys.executable, str(Path(__file__).with_name("echo.py")), str(reply_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}", process.pid
        process.stdin.close()


async def measure(up: LocalDeployment, rounds: int, seconds: float) -> Report:
    """All rounds of all loads, in turn."""
    bench, first = Bench(up), up.actors[0]
    sessions = await begin(first, CONNECTIONS * SESSIONS)
    sizes = Sizes()
    await stream_turns((first,), sessions, after(2.0), sizes)
    request = bytes(int(statistics.median(sizes.requests)))
    reply = int(statistics.median(sizes.replies))
    say(f"a request has {len(request)} bytes, a reply {reply}")
    with echo(reply) as (echo_address, echo_pid):
        async with turnwise.AsyncClient(first) as bot, teacher(first):
            for number in range(rounds):
                one, two, its = bench.pids(1), bench.pids(2), [echo_pid]
                await bench.take(
                    "stream_echo", its, lambda: stream_echo(echo_address, request, after(seconds))
                )
                await bench.take("stream", one, lambda: stream_turns((first,), sessions, after(seconds)))
                await bench.take("unary_echo", its, lambda: unary_echo(echo_address, request, after(seconds)))
                await bench.take("unary", one, lambda: unary_turns(first, sessions, after(seconds)))
                await bench.take("coalesced", one, lambda: sdk_turns(bot, after(seconds)))
                await bench.take("two", two, lambda: stream_turns(up.actors, sessions, after(seconds)))
                say(f"round {number + 1} of {rounds}: {_words(bench)}")
        await age(bench, rounds)
    ratios = {
        "stream_vs_echo": bench.ratio("stream_echo", "stream"),
        "unary_vs_echo": bench.ratio("unary_echo", "unary"),
        "coalesced_vs_echo": bench.ratio("stream_echo", "coalesced"),
        "two_processes": bench.ratio("stream", "two"),
    }
    figures = {
        "request_bytes": len(request),
        "reply_bytes": reply,
        "server_us_per_turn": {name: spread(cost) for name, cost in bench.cost_us.items()},
        "client_us_per_turn": {name: statistics.median(cost) for name, cost in bench.client_us.items()},
        "turns_per_s": {name: statistics.median(rate) for name, rate in bench.per_s.items()},
        "turn_500_vs_turn_5": bench.ratio("old", "young"),
        "actor": _actor_figures(bench),
    }
    ok = all(ratios[key] >= goal for key, goal in GOALS.items())
    return Report("turns", ratios, GOALS, figures, ok)


async def age(bench: Bench, rounds: int) -> None:
    """Dialogues of a few turns against dialogues of hundreds."""
    first = bench.up.actors[0]
    old = await begin(first, CONNECTIONS * SESSIONS)
    await stream_turns((first,), old, lambda turns: turns >= OLD * len(old))
    for _ in range(rounds):
        young = await begin(first, len(old))
        await stream_turns((first,), young, lambda turns: turns >= YOUNG * len(old))
        for name, sessions in (("young", young), ("old", old)):

            def load(sessions: list[Session] = sessions) -> Awaitable[int]:
                return stream_turns((first,), sessions, lambda turns: turns >= AGED_TURNS * len(old))

            await bench.take(name, bench.pids(1), load)


def _words(bench: Bench) -> str:
    return ", ".join(f"{name} {cost[-1]:.0f} us" for name, cost in bench.cost_us.items())


def _actor_figures(bench: Bench) -> dict[str, float]:
    seen = holding(bench.pids(1)[0], 0.0)
    return {
        "rss_mb": seen.rss_bytes / 1e6 if seen else 0.0,
        "own_mb": seen.own_bytes / 1e6 if seen else 0.0,
        "import_turnwise_s": _seconds_of("import turnwise") - _seconds_of("pass"),
    }


def _seconds_of(code: str) -> float:
    """Of a fresh interpreter that runs this; median of some."""
    taken = []
    for _ in range(COLD_STARTS):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True)
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def main() -> int:
    """0 when it ran, whatever the figures; 1 when it could not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--short", action="store_true", help="about two minutes")
    options = parser.parse_args()
    rounds, seconds = (5, 2.0) if options.short else (9, 5.0)
    with tempfile.TemporaryDirectory(prefix="turnwise-turns-") as folder:
        domain = write_domain(Path(folder))
        config = LocalConfig(domain=domain, data=Path(folder) / "data", actors=2, port=0, learner_port=0)
        try:
            with LocalDeployment(config) as up:
                report = asyncio.run(measure(up, rounds, seconds))
        except (DeploymentError, OSError) as error:
            say(f"turns could not run: {error}")
            return 1
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
