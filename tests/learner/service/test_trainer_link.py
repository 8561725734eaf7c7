import contextlib
import sqlite3
import threading
from typing import Any

import grpc.aio
import pytest

from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.access.client_access import LOCAL_TOKEN, ClientAccess, Link
from turnwise_actor.policy import PolicyVersion
from turnwise_learner.journal import journal_path
from turnwise_learner.service.server import running


def table(config, query: str) -> list[tuple]:
    connection = sqlite3.connect(journal_path(config.data))
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


async def test_each_start_and_resume_begins_a_journaled_generation(service, attach, config):
    for number, cause in enumerate(("start", "resume", "resume"), start=1):
        async with attach(service, cause) as trainer:
            assert trainer.welcome.generation == number
    assert table(config, "SELECT generation, cause FROM generations") == [
        (1, "start"),
        (2, "resume"),
        (3, "resume"),
    ]


async def test_a_reconnect_keeps_its_generation(service, attach, config):
    async with attach(service) as trainer:
        generation = trainer.welcome.generation
    async with attach(service, "", generation=generation) as trainer:
        assert trainer.welcome.generation == generation
    assert table(config, "SELECT count(*) FROM generations") == [(1,)]


async def test_a_reconnect_from_before_a_rollback_is_let_in(service, attach):
    async with attach(service) as trainer:
        generation = trainer.welcome.generation
    await service._link.begin_generation("rollback")
    async with attach(service, "", generation=generation) as trainer:
        assert trainer.welcome.generation == generation


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({"journal_id": "another"}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"cause": "whim"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"cause": "", "generation": 1}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"cause": "", "generation": 0}, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
async def test_a_trainer_that_does_not_belong_here_is_refused(service, attach, hello, code):
    await service._link.begin_generation("start")
    await service._link.begin_generation("resume")
    async with attach(service, **hello) as trainer:
        assert trainer.code is code
    assert not service._link.attached


async def test_a_stream_without_a_hello_is_refused(service, config):
    link = Link(service.local_address, ClientAccess(token_file=config.data / LOCAL_TOKEN))
    stub: Any = training_pb2_grpc.TrainerStub(link.channel())
    call = stub.Attach(metadata=link.metadata())
    await call.write(training_pb2.TrainerMessage(report=training_pb2.TrainerReport()))
    with pytest.raises(grpc.aio.AioRpcError, match="wanted hello"):
        await call.read()
    await link.close()


async def test_a_new_trainer_takes_the_place_of_the_old(service, attach, eventually):
    async with attach(service) as old, attach(service, "resume") as new:
        await eventually(lambda: old.code is grpc.StatusCode.ABORTED)
        assert new.welcome.generation == 2
        assert service._link.attached
        async with attach(service, "", generation=old.welcome.generation) as again:
            assert again.code is grpc.StatusCode.FAILED_PRECONDITION
        assert service._link.attached


async def test_a_trainer_that_waits_is_told_of_every_growth_of_the_journal(service, attach, send, make_facts):
    await send(make_facts("a", 4))
    async with attach(service) as trainer:
        assert trainer.welcome.journal_cursor == 5
        for n in range(20):
            await trainer.say(waits_after=5 + 2 * n)
            (ack,) = await send(make_facts(f"b{n}", 1))
            await trainer.until_cursor(ack.cursor)
        assert trainer.told == list(range(7, 46, 2))


async def test_a_trainer_that_has_work_is_not_told_of_the_journals_growth(service, attach, send, make_facts):
    async with attach(service) as trainer:
        for name in "abc":
            await send(make_facts(name, 4))
        await trainer.say(waits_after=5)
        await trainer.until_cursor(15)
        await send(make_facts("d", 4))
        await trainer.say(waits_after=20)
        await send(make_facts("e", 4))
        await trainer.until_cursor(25)
        assert trainer.told == [15, 25]


async def test_a_published_policy_is_broadcast_and_recorded(service, attach, policy_of, eventually, config):
    async with attach(service) as trainer:
        await trainer.publish(policy_of(1, 1, learned_through=12), cause="start")
        await eventually(lambda: table(config, "SELECT * FROM versions"))
    assert service.broadcast.current.version == PolicyVersion(1, 1)
    query = "SELECT generation, number, learned_through, file, cause FROM versions"
    assert table(config, query) == [(1, 1, 12, "1.1.safetensors", "start")]


async def test_policies_go_on_air_while_the_journal_is_busy_and_are_recorded_afterwards(
    service, attach, policy_of, eventually, config
):
    free = threading.Event()
    async with attach(service) as trainer:
        busy = service.journal.submit(lambda connection: free.wait(10))
        for number in range(1, 21):
            await trainer.publish(policy_of(1, number))
        saved = trainer.checkpoint(PolicyVersion(1, 20))
        await trainer.say(report=training_pb2.TrainerReport(last_checkpoint=saved))
        on_air = service.broadcast
        await eventually(lambda: on_air.current and on_air.current.version == PolicyVersion(1, 20))
        assert not busy.done()
        free.set()
        query = "SELECT count(*), count(checkpoint) FROM versions"
        await eventually(lambda: table(config, query) == [(20, 1)])


async def test_a_policy_whose_file_is_missing_changes_nothing(service, attach, policy_of, eventually):
    async with attach(service) as trainer:
        missing = training_pb2.PolicyPublished(file="1.9.safetensors")
        await trainer.say(published=missing)
        await trainer.publish(policy_of(1, 10))
        await eventually(lambda: service.broadcast.current)
        assert service.broadcast.current.version == PolicyVersion(1, 10)


async def test_a_file_outside_the_policies_folder_is_refused(service, attach, eventually):
    async with attach(service) as trainer:
        await trainer.say(published=training_pb2.PolicyPublished(file="../domain.json"))
        await eventually(lambda: trainer.code is grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_checkpoint_is_recorded_with_the_version_it_holds_whichever_is_told_first(
    service, attach, policy_of, eventually, config
):
    query = "SELECT number FROM versions WHERE checkpoint IS NOT NULL"
    async with attach(service) as trainer:
        early, late = (trainer.checkpoint(PolicyVersion(1, number)) for number in (1, 2))
        await trainer.publish(policy_of(1, 1))
        await trainer.say(report=training_pb2.TrainerReport(last_checkpoint=early))
        await eventually(lambda: table(config, query) == [(1,)])
        await trainer.say(report=training_pb2.TrainerReport(last_checkpoint=late))
        await trainer.publish(policy_of(1, 2))
        await eventually(lambda: table(config, query) == [(1,), (2,)])


async def test_what_was_published_and_saved_while_the_service_was_dead_is_recorded_at_its_start(
    config, policy_of, attach
):
    async with running(config) as service, attach(service) as trainer:
        trainer.checkpoint(PolicyVersion(1, 3))
    policy = policy_of(1, 3)
    (config.policies / "1.3.safetensors").write_bytes(policy.to_bytes())
    async with running(config):
        pass
    assert table(config, "SELECT number, checkpoint IS NULL FROM versions") == [(3, 0)]


async def test_a_new_generation_is_above_every_policy_in_the_folder(config, policy_of, attach):
    config.create_folders()
    (config.policies / "7.3.safetensors").write_bytes(policy_of(7, 3).to_bytes())
    async with running(config) as service, attach(service) as trainer:
        assert trainer.welcome.generation == 8


async def test_bytes_that_are_no_message_end_the_stream_even_while_something_is_being_sent(
    service, config, caplog
):
    hello = training_pb2.TrainerHello(journal_id=service.journal.journal_id, cause="start")
    first = training_pb2.TrainerMessage(hello=hello).SerializeToString()
    token = ClientAccess(token_file=config.data / LOCAL_TOKEN).metadata()
    async with grpc.aio.insecure_channel(service.local_address) as channel:
        for _ in range(50):
            call: Any = channel.stream_stream("/turnwise.v1.Trainer/Attach", None, None)(
                None, metadata=token, timeout=5
            )
            await call.write(first)
            await call.write(b"\xff")
            with contextlib.suppress(grpc.aio.AioRpcError):
                [_ async for _ in call]
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": {"generation": 2**32 - 1, "number": 1}},
        {"version": {"generation": 1, "number": 2**63}},
        {"version": {"generation": 1, "number": 1}, "learned_through": 2**63},
        {"version": {"generation": 1, "number": 1}, "updates": 2**64 - 1},
    ],
)
async def test_a_version_that_cannot_be_is_refused_and_the_next_trainer_begins(
    service, attach, eventually, wrong
):
    async with attach(service) as trainer:
        await trainer.say(published=training_pb2.PolicyPublished(file="1.1.safetensors", **wrong))
        await eventually(lambda: trainer.code is not None)
        assert trainer.code is grpc.StatusCode.INVALID_ARGUMENT
    async with attach(service) as trainer:
        assert trainer.welcome.generation == 2
