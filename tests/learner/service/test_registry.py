"""The learner tells where its actors are."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_learner.service.actors import Actors, Presence

A, B = "10.0.0.1:50051", "10.0.0.2:50051"


@asynccontextmanager
async def reporting(training: Any, address: str, **more: Any) -> AsyncIterator[Any]:
    """An actor's stream; what is given to the function is reported on it."""
    call = training.AppendFacts()
    sequence = 0

    async def report(**more: Any) -> None:
        nonlocal sequence
        sequence += 1
        report = training_pb2.ActorReport(address=address, **more)
        await call.write(training_pb2.FactBatch(sequence=sequence, report=report))
        await call.read()

    await report(**more)
    try:
        yield report
    finally:
        call.cancel()


@asynccontextmanager
async def watching(channel: grpc.aio.Channel) -> AsyncIterator[Callable[[], Any]]:
    """What a client that watches is told next: addresses, and those of actors that drain."""
    stub: Any = training_pb2_grpc.RegistryStub(channel)
    call = stub.WatchActors(training_pb2.WatchActorsRequest())

    async def told() -> tuple[list[str], list[str]]:
        listed = await asyncio.wait_for(call.read(), 10)
        return list(listed.addresses), list(listed.draining)

    try:
        yield told
    finally:
        call.cancel()


async def test_the_present_list_comes_at_once_then_each_change(training, channel):
    async with reporting(training, B), watching(channel) as told, watching(channel) as also_told:
        assert await told() == await also_told() == ([B], [])
        async with reporting(training, A):
            assert await told() == await also_told() == ([A, B], [])
        assert await told() == await also_told() == ([B], [])


async def test_without_actors_the_list_is_empty(channel):
    async with watching(channel) as told:
        assert await told() == ([], [])


async def test_a_draining_actor_leaves_the_list_and_is_named_until_it_is_back(training, channel):
    async with watching(channel) as told, reporting(training, B):
        while await told() != ([B], []):
            pass
        async with reporting(training, A) as report:
            assert await told() == ([A, B], [])
            await report(draining=True)
            assert await told() == ([B], [A])
        async with reporting(training, A, incarnation="next"):
            assert await told() == ([A, B], [])


async def test_reports_that_change_no_address_are_not_told(training, channel):
    async with watching(channel) as told, reporting(training, A) as report:
        while await told() != ([A], []):
            pass
        for turns in range(5):
            await report(turns=turns)
        async with reporting(training, B):
            assert await told() == ([A, B], [])


async def test_an_actor_with_two_streams_is_there_until_both_have_ended(training, channel):
    async with watching(channel) as told, reporting(training, B):
        async with reporting(training, A):
            async with reporting(training, A):
                while await told() != ([A, B], []):
                    pass
            async with reporting(training, "10.0.0.3:1"):
                assert await told() == ([A, B, "10.0.0.3:1"], [])
            assert await told() == ([A, B], [])
        assert await told() == ([B], [])


async def test_a_learner_that_stops_takes_nobody_off_the_list(service, training, channel):
    async with reporting(training, A), watching(channel) as told:
        assert await told() == ([A], [])
        stopping = asyncio.create_task(service.stop())
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await told()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "stopping" in (ended.value.details() or "")
        await stopping


@pytest.mark.parametrize(
    ("address", "peer", "listed"),
    [
        ("0.0.0.0:50051", "ipv4:10.0.0.5:41234", "10.0.0.5:50051"),
        ("[::]:50051", "ipv4:10.0.0.5:41234", "10.0.0.5:50051"),
        ("0.0.0.0:50051", "ipv6:[2001:db8::5]:41234", "[2001:db8::5]:50051"),
        ("0.0.0.0:50051", "ipv6:%5B2001:db8::5%5D:41234", "[2001:db8::5]:50051"),
        ("0.0.0.0:50051", "ipv4:127.0.0.1:41234", "0.0.0.0:50051"),
        ("[::]:50051", "ipv6:%5B::1%5D:41234", "[::]:50051"),
        ("0.0.0.0:50051", "unix:", "0.0.0.0:50051"),
        ("10.0.0.7:50051", "ipv4:10.0.0.5:41234", "10.0.0.7:50051"),
        ("actor-1.example:50051", "ipv4:10.0.0.5:41234", "actor-1.example:50051"),
    ],
)
async def test_an_actor_that_listens_everywhere_is_reached_where_its_stream_comes_from(address, peer, listed):
    actors = Actors()
    Presence(actors, peer).report(training_pb2.ActorReport(address=address))
    assert list((await anext(actors.lists())).addresses) == [listed]
    assert actors.status()[0].report.address == address


async def test_actors_that_listen_everywhere_on_two_machines_are_two():
    actors = Actors()
    for host in ("10.0.0.5", "10.0.0.6"):
        Presence(actors, f"ipv4:{host}:41234").report(training_pb2.ActorReport(address="0.0.0.0:50051"))
    assert list((await anext(actors.lists())).addresses) == ["10.0.0.5:50051", "10.0.0.6:50051"]
