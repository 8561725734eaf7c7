"""The service with a store: what is told, what is refused, and how it goes on when its disk is gone."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.learner.service.test_process import Learner, status_when
from tests.object_store import Buckets, _cloud, buckets, free_port  # noqa: F401
from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.access.client_access import ClientAccess, Link
from turnwise_actor.config import UplinkConfig
from turnwise_actor.facts import pack
from turnwise_actor.spool import Spool
from turnwise_actor.uplink import Uplink
from turnwise_cli.sequences import Sequences
from turnwise_learner.journal import JournalReader, journal_path
from turnwise_learner.service.config import ServiceConfig
from turnwise_learner.service.server import running
from turnwise_learner.store import StoreConfig, StoreRefusedError
from turnwise_learner.store.restore import JUMP, restore


@pytest.fixture
def with_store(config: ServiceConfig, tmp_path: Path) -> Callable[..., ServiceConfig]:
    """A service's configuration with a store, a folder if nothing else is said."""

    def with_store(uri: str = "", **more: Any) -> ServiceConfig:
        store = StoreConfig(uri or str(tmp_path / "store"), every_s=0.02)
        return replace(config, store=store, **more)

    return with_store


def missing(data: Path) -> list[str]:
    """What `turnwise ledger` says of facts that actors were told of."""
    with JournalReader(journal_path(data)) as reader:
        sequences = Sequences(reader)
        list(sequences.of(reader.read_after(0)))
        return sequences.missing()


def journaled(data: Path) -> set[str]:
    with JournalReader(journal_path(data)) as reader:
        return {row.fact.key for row in reader.read_after(0, 1_000_000)}


async def append(address: str, facts: list[training_pb2.Fact]) -> None:
    """Returns when the facts are acknowledged."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = training_pb2_grpc.TrainingStub(channel)
        call = stub.AppendFacts()
        await call.write(training_pb2.FactBatch(sequence=1, facts=facts))
        await call.done_writing()
        (ack,) = [ack async for ack in call]
    assert not ack.refused


async def status_of(address: str) -> training_pb2.LearnerStatus:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = training_pb2_grpc.OperatorStub(channel)
        return await stub.GetStatus(training_pb2.GetStatusRequest(), timeout=5)


def all_shipped(status: training_pb2.LearnerStatus) -> bool:
    return status.store.shipped_through == status.journal_cursor > 0 and not status.store.problems


def test_a_learner_that_was_killed_and_lost_its_disk_goes_on_from_the_bucket(config, buckets, make_facts):  # noqa: F811
    uri = buckets.uri(buckets.create())
    options = ("--no-trainer", "--checkpoint-store", uri, "--ship-journal-every", "0.05")
    facts = make_facts("a", 50)
    first = Learner(config, *options)
    try:
        asyncio.run(append(first.address(), facts))
        before = status_when(first.address(), all_shipped)
        assert before.store.uri == uri.partition("?")[0]
        assert before.store.shipped_ms >= before.started_ms
    finally:
        first.end(signal.SIGKILL)
    shutil.rmtree(config.data)
    again = Learner(config, *options)
    try:
        status = status_when(again.address(), lambda status: True)
        assert (status.journal_id, status.journal_cursor) == (before.journal_id, 51)
        assert (status.dialogues, status.decisions) == (1, 50)
        assert status.epoch == JUMP + 2
        assert journaled(config.data) == {fact.key for fact in facts}
        asyncio.run(append(again.address(), facts + make_facts("b", 3)))
        assert status_when(again.address(), all_shipped).decisions == 53
    finally:
        code, log = again.end(signal.SIGTERM)
    assert code == 0
    assert "restored: facts through 51, no checkpoint" in log


async def test_what_was_acknowledged_at_the_end_is_in_the_store(with_store, make_facts, tmp_path: Path):
    seldom = with_store()
    seldom = replace(seldom, store=replace(seldom.store, every_s=60.0))
    async with running(seldom) as service:
        await append(service.address, make_facts("a", 5))
        assert (await status_of(service.address)).store.shipped_through == 0
    assert not (seldom.data / "journal.sqlite-wal").exists()
    assert restore(seldom.store.uri, tmp_path / "new")
    assert journaled(tmp_path / "new") == journaled(seldom.data)


async def test_a_service_without_a_store_says_so(service):
    assert not (await status_of(service.address)).HasField("store")


async def test_an_actor_goes_on_with_a_learner_that_lost_its_last_facts(
    with_store, make_facts, eventually, tmp_path: Path, caplog
):
    config = with_store(listen=f"127.0.0.1:{free_port()}")
    store, as_it_was = tmp_path / "store", tmp_path / "as-it-was"
    a, b, c = (list(map(pack, make_facts(name, 2))) for name in "abc")
    link = Link(config.listen, ClientAccess(), [("grpc.max_reconnect_backoff_ms", 200)])
    spool = Spool(tmp_path / "spool", "a", max_bytes=1_000_000, segment_bytes=2_000)
    patient = UplinkConfig(settle_wait_ms=20_000, reconnect_min_s=0.02, reconnect_max_s=0.1)
    uplink = Uplink(
        link,
        spool,
        patient,
        lambda: training_pb2.ActorReport(
            address="a:1", incarnation=f"{7:016x}", journaled_through=uplink.journaled_through
        ),
        7,
    )
    try:
        async with running(config) as service:
            uplink.start()
            assert await uplink.settle(a) == 3
            while not all_shipped(await status_of(service.address)):
                await asyncio.sleep(0.01)
            shutil.copytree(store, as_it_was)
            assert await uplink.settle(b) == 6
        shutil.rmtree(config.data)
        shutil.rmtree(store)
        as_it_was.rename(store)
        async with running(config) as service:
            assert await uplink.settle(c) == 3 + JUMP + 3
            assert service.journal.epoch > JUMP
            uplink.report_soon()
            with JournalReader(journal_path(config.data)) as reader:
                await eventually(lambda: [row[2] for row in reader.sequences()[0]] == [9])
        (told,) = missing(config.data)
        assert "actor a:1 (process 0000000000000007) was told that its facts 1 to 9 are in" in told
        assert told.endswith("; 3 are not: 4 to 6")
        assert journaled(config.data) == {fact.key for fact in a + c}
        assert "epoch went back" not in caplog.text
    finally:
        await uplink.close(0.1)
        await spool.close()
        await link.close()


async def test_a_store_that_is_away_delays_no_answer_and_is_caught_up_with(
    config, with_store, make_facts, eventually, caplog, tmp_path: Path
):
    async with running(config) as service:
        await append(service.address, make_facts("a", 1))
    mount = tmp_path / "mount"
    mount.write_text("no folder can be here")
    async with running(with_store(str(mount / "store"))) as service:
        await append(service.address, make_facts("b", 1))

        async def told() -> bool:
            store = (await status_of(service.address)).store
            return store.failures > 2 and "cannot be copied to the store" in store.problems[0]

        async def caught_up() -> bool:
            return all_shipped(await status_of(service.address))

        await eventually(told)
        mount.unlink()
        await eventually(caught_up)
        assert (await status_of(service.address)).store.shipped_through == 4
    told_once = [record for record in caplog.records if "the journal cannot be copied" in record.message]
    assert len(told_once) == 1
    assert told_once[0].levelno == logging.WARNING


async def test_an_empty_data_folder_begins_no_journal_while_the_store_is_away(with_store, tmp_path: Path):
    (tmp_path / "file").write_text("no folder can be here")
    config = with_store(str(tmp_path / "file" / "store"))
    with pytest.raises(OSError, match="store"):
        async with running(config):
            pass
    assert not journal_path(config.data).exists()


async def test_a_store_of_another_journal_is_refused_with_its_reason(with_store, make_facts, tmp_path: Path):
    config = with_store()
    async with running(config) as service:
        await append(service.address, make_facts("a", 1))
    other = replace(config, data=tmp_path / "other", store=None)
    async with running(other):
        pass
    options = ("--no-trainer", "--checkpoint-store", config.store.uri)
    refused = await asyncio.to_thread(Learner, other, *options)
    assert await asyncio.to_thread(refused.process.wait, 20) == os.EX_CONFIG
    assert "the checkpoint store belongs to journal" in refused.process.communicate()[1]
    async with running(config) as service:  # nothing there was changed
        assert not (await status_of(service.address)).store.problems


async def test_when_the_old_learner_comes_back_it_is_refused(with_store, make_facts, tmp_path: Path):
    config = with_store()
    async with running(config) as service:
        await append(service.address, make_facts("a", 1))
    async with running(replace(config, data=tmp_path / "new")):
        pass
    with pytest.raises(StoreRefusedError, match="another learner has gone on"):
        async with running(config):
            pass


HURRIED = """
import sys
from dataclasses import replace
from turnwise_learner import __main__ as process
config = process._config
process._config = lambda arguments: replace(config(arguments), store_wait_s=0.2)
process.main()
"""


async def test_a_store_that_never_answers_keeps_no_learner_from_ending(config, make_facts, eventually):
    async with running(config) as service:
        await append(service.address, make_facts("a", 1))
    address = config.data / "learner.address"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment |= {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = Buckets(silent.getsockname()[1]).uri("bucket")
        command = [sys.executable, "-c", HURRIED, "--domain", str(config.domain), "--data", str(config.data)]
        command += ["--no-trainer", "--listen", "127.0.0.1:0", "--checkpoint-store", uri]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                await eventually(address.exists, 20)
                await append(address.read_text(), make_facts("b", 1))
                process.send_signal(signal.SIGTERM)
                _, told = await asyncio.to_thread(process.communicate, timeout=10)
            finally:
                process.kill()
    assert process.returncode == 0, told
    assert "the store is left behind: what is new in the journal is not in it" in told
    assert "stopped" in told
