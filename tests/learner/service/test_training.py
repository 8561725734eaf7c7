import asyncio
from typing import Any

import grpc.aio
import pytest

from turnwise.v1 import dialogue_pb2, training_pb2, training_pb2_grpc
from turnwise_actor.policy import Policy, PolicyVersion
from turnwise_learner.journal import JournalReader, journal_path
from turnwise_learner.service.broadcast import CHUNK_BYTES, PolicyOnAir
from turnwise_learner.service.server import running


async def test_each_batch_is_acknowledged_in_order_once_it_is_durable(send, make_facts, service, config):
    acks = await send(*(make_facts(f"a{n}", 3) for n in range(30)))
    assert [ack.sequence for ack in acks] == list(range(1, 31))
    assert [ack.cursor for ack in acks] == [4 * n for n in range(1, 31)]
    assert {ack.epoch for ack in acks} == {service.journal.epoch}
    with JournalReader(journal_path(config.data)) as reader:
        assert reader.last_cursor() == 120


async def test_facts_sent_again_are_acknowledged_with_their_old_position(send, make_facts):
    await send(make_facts("a", 3), make_facts("b", 3))
    (ack,) = await send(make_facts("a", 3))
    assert ack.cursor == 4


async def test_a_malformed_fact_is_refused_and_ends_nothing(send, make_facts):
    malformed = training_pb2.Fact(key="x:1", dialogue_id="a", started=training_pb2.Started())
    first, second = await send([malformed, *make_facts("a", 1)], make_facts("b", 1))
    assert [(each.key, "wanted 's:'" in each.reason) for each in first.refused] == [("x:1", True)]
    assert (first.cursor, second.cursor) == (2, 4)


async def test_a_number_that_no_row_will_have_is_noted(send, make_facts, config, service):
    kept, known, refused, too_high = (make_facts("a", 0)[0] for _ in range(4))
    for sequence, fact in enumerate((kept, known, refused, too_high), start=1):
        fact.incarnation, fact.sequence = 0xABC, sequence
    refused.key = "x:1"
    too_high.sequence = 2**63
    await send([kept], [kept], [known, refused, too_high], make_facts("a", 0))
    with JournalReader(journal_path(config.data)) as reader:
        _, not_kept = reader.sequences()
        (row,) = reader.read_after(0)
    assert row.fact.sequence == 1
    assert not_kept == [("0000000000000abc", 2), ("0000000000000abc", 3)]


async def test_what_an_actor_says_is_journaled_is_kept_and_never_goes_back(training, config, service):
    call = training.AppendFacts()
    for through, address, incarnation in (
        (5, "10.0.0.7:1", "0123456789abcdef"),
        (2, "10.0.0.7:1", "0123456789abcdef"),
        (7, "10.0.0.8:1", "0123456789abcdef"),
        (9, "10.0.0.7:1", "no number"),
        (2**64 - 1, "10.0.0.7:1", "0123456789abcdef"),
    ):
        report = training_pb2.ActorReport(journaled_through=through, address=address, incarnation=incarnation)
        await call.write(training_pb2.FactBatch(sequence=1, report=report))
        await call.read()
    await service.journal.submit(lambda connection: None)
    with JournalReader(journal_path(config.data)) as reader:
        assert reader.sequences() == ([("0123456789abcdef", "10.0.0.8:1", 7)], [])


async def test_bytes_that_are_no_batch_end_the_stream_after_what_was_read_before(
    channel, make_facts, service, caplog
):
    call = channel.stream_stream(
        "/turnwise.v1.Training/AppendFacts", response_deserializer=training_pb2.Ack.FromString
    )()
    batch = training_pb2.FactBatch(sequence=1, facts=make_facts("d", 2))
    await call.write(batch.SerializeToString())
    await call.write(b"\xff")
    assert (await call.read()).cursor == 3
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1 bytes that are none" in (refused.value.details() or "")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_batch_without_facts_is_acknowledged_at_the_journals_end(send, make_facts):
    _, empty = await send(make_facts("a", 2), [])
    assert (empty.sequence, empty.cursor) == (2, 3)


async def test_many_streams_lose_and_double_nothing(send, make_facts, service):
    batches = [[make_facts(f"{n}.{m}", 4) for m in range(10)] for n in range(8)]
    answers = await asyncio.gather(*(send(*each) for each in [*batches, *batches]))
    assert all(len(acks) == 10 for acks in answers)
    assert sum(service.journal.counts.values()) == 8 * 10 * 5
    assert max(ack.cursor for acks in answers for ack in acks) == service.journal.last_cursor


async def test_a_stream_that_the_actor_drops_leaves_the_others_alone(training, send, make_facts, service):
    call = training.AppendFacts()
    await call.write(training_pb2.FactBatch(sequence=1, facts=make_facts("a", 1)))
    assert (await call.read()).cursor == 2
    call.cancel()
    assert (await send(make_facts("b", 1)))[0].cursor == 4


async def test_draining_answers_what_was_read_then_ends_the_stream(config, make_facts):
    async with running(config) as service, grpc.aio.insecure_channel(service.address) as channel:
        stub: Any = training_pb2_grpc.TrainingStub(channel)
        call = stub.AppendFacts()
        await call.write(training_pb2.FactBatch(sequence=1, facts=make_facts("a", 1)))
        assert (await call.read()).sequence == 1
        service._training.drain()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "stopping" in (caught.value.details() or "")


async def test_a_journal_that_cannot_commit_ends_the_stream_and_takes_the_facts_later(
    send, make_facts, service
):
    await send(make_facts("a", 1))
    await service.journal.submit(lambda c: c.execute("PRAGMA max_page_count = 1").fetchall())
    with pytest.raises(grpc.aio.AioRpcError, match="could not commit") as caught:
        await send(make_facts("b", 500))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await service.journal.submit(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchall())
    (ack,) = await send(make_facts("b", 500))
    assert ack.cursor == service.journal.last_cursor
    assert sum(service.journal.counts.values()) == 503


async def watch(training, count: int, **request) -> list[bytes]:
    """The next whole files of a WatchPolicy stream."""
    files, data = [], b""
    call = training.WatchPolicy(training_pb2.WatchPolicyRequest(**request))
    async for chunk in call:
        assert chunk.offset == len(data)
        assert len(chunk.data) <= CHUNK_BYTES
        data += chunk.data
        if len(data) == chunk.total:
            files.append(data)
            data = b""
        if len(files) == count:
            call.cancel()
            return files
    raise AssertionError("the stream ended")


@pytest.fixture
def on_air(config):
    """Makes policy files with an own content."""

    def make(generation: int, number: int, size: int = 10) -> PolicyOnAir:
        path = config.policies / f"{generation}.{number}.safetensors"
        path.write_bytes(number.to_bytes(2, "little") * (size // 2))
        return PolicyOnAir(PolicyVersion(generation, number), 0, path)

    return make


async def test_a_subscriber_gets_the_newest_policy_at_once_whole_and_in_pieces(training, service, on_air):
    policy = on_air(1, 1, size=3 * CHUNK_BYTES + 10)
    service.broadcast.put(policy)
    (data,) = await watch(training, 1)
    chunks = await policy.chunks()
    assert data == b"".join(chunk.data for chunk in chunks)
    assert len(chunks) == 4


async def test_a_subscriber_on_the_same_disk_is_told_of_the_file(training, service, on_air, config):
    service.broadcast.put(on_air(1, 1, size=3 * CHUNK_BYTES))
    call = training.WatchPolicy(training_pb2.WatchPolicyRequest(map_file=True))
    for number in (1, 2):
        notice = await call.read()
        path = config.policies / f"1.{number}.safetensors"
        assert notice.file.path == str(path)
        assert (notice.file.inode, notice.file.modified_ns) == (path.stat().st_ino, path.stat().st_mtime_ns)
        assert (notice.total, notice.data) == (path.stat().st_size, b"")
        service.broadcast.put(on_air(1, 2))
    call.cancel()


async def test_a_policy_whose_file_has_made_room_is_skipped(training, service, on_air, config):
    service.broadcast.put(on_air(1, 1))
    (config.policies / "1.1.safetensors").unlink()
    watching = asyncio.create_task(watch(training, 1))
    await asyncio.sleep(0.1)
    service.broadcast.put(on_air(1, 2))
    assert (await watching)[0].startswith(b"\x02\x00")


async def test_a_subscriber_that_has_the_newest_waits_for_a_newer_one(training, service, on_air):
    service.broadcast.put(on_air(1, 5))
    have = dialogue_pb2.PolicyVersion(generation=1, number=5)
    watching = asyncio.create_task(watch(training, 1, have=have))
    await asyncio.sleep(0.1)
    assert not watching.done()
    assert not service.broadcast.put(on_air(1, 4))
    service.broadcast.put(on_air(2, 1))
    assert (await watching)[0].startswith(b"\x01\x00")


async def test_a_slow_subscriber_skips_the_versions_that_came_meanwhile(training, service, on_air):
    size = 8 * CHUNK_BYTES
    service.broadcast.put(on_air(1, 1, size))
    call = training.WatchPolicy(training_pb2.WatchPolicyRequest())
    first = await call.read()
    for number in range(2, 30):
        service.broadcast.put(on_air(1, number, size))
    versions = [first.version.number]
    while versions[-1] != 29:
        versions.append((await call.read()).version.number)
    assert set(versions) == {1, 29}
    call.cancel()


async def test_every_subscriber_gets_every_new_policy_it_has_time_for(training, service, on_air):
    watching = [asyncio.create_task(watch(training, 3)) for _ in range(8)]
    await asyncio.sleep(0.2)
    for number in (1, 2, 3):
        service.broadcast.put(on_air(1, number))
        await asyncio.sleep(0.1)
    for files in await asyncio.gather(*watching):
        assert [data[0] for data in files] == [1, 2, 3]


async def test_an_actor_of_another_domain_is_told_so(training, service):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch(training, 1, domain_fingerprint="0123456789abcdef")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "got 0123456789abcdef" in (caught.value.details() or "")


async def test_a_service_that_starts_again_broadcasts_the_latest_file(config, policy_of):
    config.create_folders()
    for version in ((1, 9), (1, 10), (2, 1)):
        policy = policy_of(*version)
        (config.policies / f"{policy.version}.safetensors").write_bytes(policy.to_bytes())
    (config.policies / "9.1.safetensors").write_bytes(b"torn")
    async with running(config) as service:
        assert service.broadcast.current is not None
        assert service.broadcast.current.version == PolicyVersion(2, 1)
    (config.policies / "LATEST").write_text("1.10.safetensors")
    async with running(config) as service:
        current = service.broadcast.current
        assert current is not None
        assert current.version == PolicyVersion(1, 10)
        data = b"".join(chunk.data for chunk in await current.chunks())
        assert Policy.from_bytes(data).version == current.version
