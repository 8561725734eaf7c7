"""What a turn costs the actor, against the least that a message can cost on grpc.aio, and against Ray Serve.

The actor is the product's, as `turnwise up` starts it, with a learner behind it that learns meanwhile: tokens
are opened and sealed, requests checked, 128 features go through a network of [256, 256] for 64 actions,
decisions go to the journal. The echo answers bytes of the same sizes and does nothing else; Serve runs the
same network in messages of the same sizes (`serve_peer.py`). All are measured in CPU-seconds of the server
process, in turn, by the same 8 connections of 8 sessions each.

`--short`: about five minutes.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import open_dialogues
import turnwise
from cold_start import cold_start_figures
from loads import (
    CONNECTIONS,
    FEATURES,
    SESSIONS,
    Session,
    Sizes,
    after,
    begin,
    sdk_turns,
    stream_echo,
    stream_turns,
    teacher,
    unary_echo,
    unary_turns,
)
from processes import Holding, cpu_s, holding
from report import Report, say, spread
from serve_peer import Peer, serve_peer
from swaps import measure_swaps
from turnwise_actor.policy import Domain, initial_policy
from turnwise_deploy.local import DeploymentError, LocalConfig, LocalDeployment

AT_LEAST = {
    "stream_vs_echo": 0.65,
    "unary_vs_echo": 0.65,
    "coalesced_vs_echo": 1.5,
    "two_processes": 0.9,
    "stream_vs_serve": 4.0,
    "unary_vs_serve": 1.0,
}
AT_MOST = {"memory_vs_serve": 0.4, "open_dialogues_100k": 1.1}
FIGURE_GOALS = {
    "first_turn_s": 0.7,
    "rss_after_10000_turns_mb": 80.0,
    "import_turnwise_s": 0.25,
    "swap_delay_p99_ms": 5.0,
}
"""Of figures, each a highest value."""
ACTIONS, HIDDEN = 64, [256, 256]
YOUNG, OLD, AGED_TURNS = 5, 500, 100


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


@dataclass
class Bench:
    """A deployment, an echo, and what was measured of them: microseconds of server CPU a turn."""

    up: LocalDeployment
    cost_us: dict[str, list[float]] = field(default_factory=dict)
    per_s: dict[str, list[float]] = field(default_factory=dict)
    client_us: dict[str, list[float]] = field(default_factory=dict)
    rss_mb: dict[str, list[float]] = field(default_factory=lambda: {"actor": [], "replica": []})
    """After each round: memory rises and falls with what is on its way."""

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


@dataclass(frozen=True)
class Plan:
    """How long."""

    rounds: int
    seconds: float
    """Of each load in a round."""
    open: open_dialogues.Plan
    swap_rounds: int

    @property
    def open_key(self) -> str:
        """What the figure of open dialogues is called."""
        return f"open_dialogues_{self.open.open // 1000}k"


FULL = Plan(9, 5.0, open_dialogues.FULL, 10)
SHORT = Plan(5, 2.0, open_dialogues.SHORT, 3)
SWAP_SECONDS = 3.0


async def measure(up: LocalDeployment, policy: Path, plan: Plan) -> Report:
    """All rounds of all loads, in turn."""
    bench, first = Bench(up), up.actors[0]
    sessions = await begin(first, CONNECTIONS * SESSIONS)
    sizes = Sizes()
    await stream_turns((first,), sessions, after(2.0), sizes)
    request = bytes(int(statistics.median(sizes.requests)))
    reply = int(statistics.median(sizes.replies))
    say(f"a request has {len(request)} bytes, a reply {reply}")
    token = bytes(int(statistics.median(len(session.token) for session in sessions)))
    with echo(reply) as (echo_address, echo_pid), serve_peer(policy, best=True) as peer:
        if peer is None:
            say("Ray Serve is not installed (pip install 'turnwise[bench]'): not compared with it")
        async with turnwise.AsyncClient(first) as bot, teacher(first):
            for number in range(plan.rounds):
                await _round(bench, sessions, bot, (echo_address, echo_pid, request), plan.seconds)
                if peer is not None:
                    await _serve_round(bench, peer, token, plan.seconds)
                    bench.rss_mb["replica"].append(_held(peer.replica).rss_bytes / 1e6)
                bench.rss_mb["actor"].append(_held(bench.pids(1)[0]).rss_bytes / 1e6)
                say(f"round {number + 1} of {plan.rounds}: {_words(bench)}")
        await age(bench, plan.rounds)
        ratios = _ratios(bench)
        figures = _figures(bench)
        if peer is not None:
            ratios |= _serve_ratios(bench)
            figures["serve"] = _serve_figures(bench)
    if peer is not None:
        figures["serve"]["default"] = await default_serve(policy, token, plan)
    figures |= {"request_bytes": len(request), "reply_bytes": reply}
    figures["swaps"] = await measure_swaps(up, policy.parent, plan.swap_rounds, SWAP_SECONDS)
    ratio, figures["open_dialogues"] = await open_dialogues.measure_open(up, plan.open)
    (ratios if plan.open_key in AT_MOST else figures)[plan.open_key] = ratio
    return Report("turns", ratios, AT_LEAST | AT_MOST, figures, met(ratios))


def met(ratios: dict[str, float]) -> bool:
    """Whether every goal of what was measured is."""
    return all(
        value >= AT_LEAST[key] if key in AT_LEAST else value <= AT_MOST[key] for key, value in ratios.items()
    )


async def _round(
    bench: Bench,
    sessions: list[Session],
    bot: turnwise.AsyncClient,
    echoed: tuple[str, int, bytes],
    seconds: float,
) -> None:
    """Each load of the actors and the echo once."""
    (address, pid, request), up = echoed, bench.up
    first, one, two = up.actors[0], bench.pids(1), bench.pids(2)
    await bench.take("stream_echo", [pid], lambda: stream_echo(address, request, after(seconds)))
    await bench.take("stream", one, lambda: stream_turns((first,), sessions, after(seconds)))
    await bench.take("unary_echo", [pid], lambda: unary_echo(address, request, after(seconds)))
    await bench.take("unary", one, lambda: unary_turns(first, sessions, after(seconds)))
    await bench.take("coalesced", one, lambda: sdk_turns(bot, after(seconds)))
    await bench.take("two", two, lambda: stream_turns(up.actors, sessions, after(seconds)))
    half = sessions[: len(sessions) // 2]
    await bench.take("half", one, lambda: stream_turns((first,), half, after(seconds)))


async def _serve_round(bench: Bench, peer: Peer, token: bytes, seconds: float) -> None:
    """The same sessions' loads of Serve."""
    sessions = [Session(token) for _ in range(CONNECTIONS * SESSIONS)]
    await bench.take("unary_serve", peer.pids, lambda: unary_turns(peer.address, sessions, after(seconds)))
    await bench.take(
        "stream_serve", peer.pids, lambda: stream_turns((peer.address,), sessions, after(seconds))
    )


async def default_serve(policy: Path, token: bytes, plan: Plan) -> dict[str, Any]:
    """Serve as it comes: calls alone, through the proxy, which costs what it costs."""
    with serve_peer(policy, best=False) as peer:
        if peer is None:
            return {}
        sessions = [Session(token) for _ in range(CONNECTIONS * SESSIONS)]
        await unary_turns(peer.address, sessions, after(plan.seconds))
        begun = sum(map(cpu_s, peer.pids))
        done = await unary_turns(peer.address, sessions, after(plan.seconds))
        cost = sum(map(cpu_s, peer.pids)) - begun
        return {"unary_us_per_turn": 1e6 * cost / done, "turns_per_s": done / plan.seconds}


def _ratios(bench: Bench) -> dict[str, float]:
    return {
        "stream_vs_echo": bench.ratio("stream_echo", "stream"),
        "unary_vs_echo": bench.ratio("unary_echo", "unary"),
        "coalesced_vs_echo": bench.ratio("stream_echo", "coalesced"),
        "two_processes": bench.ratio("stream", "two"),
    }


def _serve_ratios(bench: Bench) -> dict[str, float]:
    """A stream against the cheaper of Serve's calls and Serve's streams, a call against its calls."""
    best = min(("unary_serve", "stream_serve"), key=lambda name: statistics.median(bench.cost_us[name]))
    return {
        "stream_vs_serve": bench.ratio(best, "stream"),
        "unary_vs_serve": bench.ratio("unary_serve", "unary"),
        "memory_vs_serve": statistics.median(bench.rss_mb["actor"])
        / statistics.median(bench.rss_mb["replica"]),
    }


def _serve_figures(bench: Bench) -> dict[str, Any]:
    return {
        "rss_mb": spread(bench.rss_mb["replica"]),
        "stream_vs_serve_calls": bench.ratio("unary_serve", "stream"),
        "coalesced_vs_serve_calls": bench.ratio("unary_serve", "coalesced"),
        "coalesced_vs_serve_streams": bench.ratio("stream_serve", "coalesced"),
    }


def _figures(bench: Bench) -> dict[str, Any]:
    return {
        "server_us_per_turn": {name: spread(cost) for name, cost in bench.cost_us.items()},
        "client_us_per_turn": {name: statistics.median(cost) for name, cost in bench.client_us.items()},
        "turns_per_s": {name: statistics.median(rate) for name, rate in bench.per_s.items()},
        "turn_500_vs_turn_5": bench.ratio("old", "young"),
        "two_vs_one_as_busy": bench.ratio("half", "two"),
        "actor": {"rss_mb": spread(bench.rss_mb["actor"]), "own_mb": _held(bench.pids(1)[0]).own_bytes / 1e6},
    }


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


def _held(pid: int) -> Holding:
    seen = holding(pid, 0.0)
    if seen is None:
        raise DeploymentError(f"process {pid} is gone")
    return seen


def write_policy(domain: Path, folder: Path) -> Path:
    """One that has learned nothing, of this domain."""
    path = folder / "policy.safetensors"
    path.write_bytes(initial_policy(Domain.load(domain)).to_bytes())
    return path


def main() -> int:
    """0 when it ran, whatever the figures; 1 when it could not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--short", action="store_true", help="about five minutes")
    plan = SHORT if parser.parse_args().short else FULL
    with tempfile.TemporaryDirectory(prefix="turnwise-turns-") as name:
        folder = Path(name)
        domain = write_domain(folder)
        policy = write_policy(domain, folder)
        config = LocalConfig(domain=domain, data=folder / "data", actors=2, port=0, learner_port=0)
        try:
            with LocalDeployment(config) as up:
                cold = cold_start_figures(up, domain, policy, folder)
                say(", ".join(f"{key} {value:.3g}" for key, value in cold.items()))
                report = asyncio.run(measure(up, policy, plan))
        except (DeploymentError, OSError) as error:
            say(f"turns could not run: {error}")
            return 1
    report.figures |= {"cold_start": cold, "figure_goals": FIGURE_GOALS}
    print(report.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
