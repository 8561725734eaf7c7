"""What Prometheus reads from an actor."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from turnwise_actor.config import ActorConfig, SpoolConfig
from turnwise_actor.latencies import EDGES_S, Latencies
from turnwise_actor.server import ActorServer, ListenError

from .conftest import ActorFactory, eventually
from .frontend import Frontend
from .learner_end import LearnerEnd

ANYWHERE = "127.0.0.1:0"


async def ask(address: str, request: bytes) -> tuple[bytes, bytes]:
    """Head and content of the answer to a request."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return head, content


async def scraped(actor: ActorServer) -> dict[str, float]:
    """Values by name, that of the label `le` with it."""
    head, content = await ask(actor.metrics_address, b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    samples = [s for f in text_string_to_metric_families(content.decode()) for s in f.samples]
    assert all(sample.name.startswith("turnwise_") for sample in samples)
    return {sample.name + sample.labels.get("le", ""): sample.value for sample in samples}


async def talk(bot: Frontend, turns: int) -> None:
    token = (await bot.start()).token
    for _ in range(turns):
        token = (await bot.act(token)).token


async def test_what_it_serves_is_what_it_reports(new_actor: ActorFactory, learner: LearnerEnd) -> None:
    actor, bot = await new_actor(metrics_listen=ANYWHERE)
    await talk(bot, 5)
    await eventually(lambda: learner.reports and learner.reports[-1].turns == 5)
    report, told = learner.reports[-1], await scraped(actor)
    for name, value in {
        "turns_total": 5,
        "unrecorded_turns_total": 0,
        "streams": report.streams,
        "policy_generation": report.policy_version.generation,
        "policy_number": report.policy_version.number,
        "learned_through": 7,
        "draining": 0,
        "learner_connected": 1,
        "info": 1,
    }.items():
        assert told[f"turnwise_actor_{name}"] == value, name
    assert told["turnwise_process_resident_memory_bytes"] > 1e7


async def test_a_learner_that_is_away_and_a_disk_that_is_full_are_seen(new_actor: ActorFactory) -> None:
    actor, bot = await new_actor(
        metrics_listen=ANYWHERE, learner_address="127.0.0.1:1", spool=SpoolConfig(max_bytes=1)
    )
    await talk(bot, 12)
    told = await scraped(actor)
    assert told["turnwise_actor_learner_connected"] == 0
    assert told["turnwise_actor_spool_limit_bytes"] == 1
    assert told["turnwise_actor_pending_facts"] == actor.uplink.pending_facts > 0
    assert 0 < told["turnwise_actor_unrecorded_turns_total"] < told["turnwise_actor_turns_total"] == 12


async def test_facts_on_disk_are_counted_in_bytes(new_actor: ActorFactory) -> None:
    actor, bot = await new_actor(metrics_listen=ANYWHERE, learner_address="127.0.0.1:1")
    await talk(bot, 12)
    assert (await scraped(actor))["turnwise_actor_spooled_bytes"] == actor.spool.size_bytes > 0


async def test_every_turn_is_in_the_histogram_once(new_actor: ActorFactory) -> None:
    actor, bot = await new_actor(metrics_listen=ANYWHERE)
    await talk(bot, 7)
    told = await scraped(actor)
    assert told["turnwise_actor_turn_seconds_count"] == told["turnwise_actor_turn_seconds_bucket+Inf"] == 7
    assert 0 < told["turnwise_actor_turn_seconds_sum"] < 7 * 10


def test_a_duration_is_in_the_first_bucket_that_holds_it() -> None:
    latencies = Latencies()
    for duration_s in (0.0, EDGES_S[0], EDGES_S[0] * 1.01, EDGES_S[-1], EDGES_S[-1] * 1.01):
        latencies.add(duration_s)
    buckets = dict(latencies.cumulative())
    assert [buckets[edge] for edge in ("0.0001", "0.00025", "1.0", "2.5", "+Inf")] == [2, 3, 3, 4, 5]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "200 OK"),
        (b"GET /metrics?name=x HTTP/1.1\r\n\r\n", "200 OK"),
        (b"GET /elsewhere HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"\x16\x03\x01\r\n\r\n", "400 Bad Request"),
        (b"GET /" + b"x" * 100_000, ""),
    ],
)
async def test_other_requests_are_refused(new_actor: ActorFactory, request_: bytes, status: str) -> None:
    actor, _ = await new_actor(metrics_listen=ANYWHERE)
    try:
        head, _ = await ask(actor.metrics_address, request_)
    except ConnectionError:
        head = b""
    assert head.partition(b"\r\n")[0].decode() == (f"HTTP/1.1 {status}" if status else "")


async def test_connections_that_say_nothing_are_few_and_do_not_hold_up_the_end(
    new_actor: ActorFactory,
) -> None:
    actor, bot = await new_actor(metrics_listen=ANYWHERE)
    host, _, port = actor.metrics_address.rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(16)]
    with pytest.raises((ConnectionError, AssertionError)):
        await scraped(actor)
    await talk(bot, 1)
    silent[0][1].close()
    metrics = actor._metrics
    assert metrics is not None
    await eventually(lambda: len(metrics._connections) < 16)
    assert (await scraped(actor))["turnwise_actor_turns_total"] == 1
    assert await asyncio.wait_for(actor.stop(), 3)
    for _, writer in silent:
        writer.close()


async def test_metrics_are_served_nowhere_unless_asked_for(
    new_actor: ActorFactory, config: ActorConfig
) -> None:
    actor, _ = await new_actor()
    assert actor.metrics_address == ""
    with pytest.raises(ValueError, match="metrics_listen: got 'nowhere'; wanted HOST:PORT"):
        await new_actor(metrics_listen="nowhere")


async def test_a_port_in_use_is_refused(new_actor: ActorFactory) -> None:
    actor, _ = await new_actor(metrics_listen=ANYWHERE)
    with pytest.raises(ListenError, match=f"metrics: cannot listen on {actor.metrics_address}"):
        await new_actor(metrics_listen=actor.metrics_address)
