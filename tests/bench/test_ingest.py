"""What the benchmark of ingest sends, what it is held against, and what it makes of its figures."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest

from fact_load import BATCH_FACTS, DIALOGUE_TURNS, Facts, FactStream, batches
from ingest import FULL, SHORT, median_ratio, watched_groups
from learner_seen import Mark, Phase
from run import table
from straight import BareAppend, StraightSqlite
from turns import write_domain
from turnwise.v1 import training_pb2
from turnwise_actor.policy import Domain
from turnwise_deploy.local import DeploymentError
from turnwise_learner.journal import JournalReader, journal_path
from turnwise_learner.service.config import ServiceConfig
from turnwise_learner.service.facts import to_rows
from turnwise_learner.service.server import running
from turnwise_learner.trainer.assembler import Assembler


@pytest.fixture
def domain_file(tmp_path: Path) -> Path:
    return write_domain(tmp_path)


@pytest.fixture
def facts(domain_file: Path) -> Facts:
    return Facts(Domain.load(domain_file))


@pytest.fixture
async def stream(domain_file: Path, tmp_path: Path) -> AsyncIterator[FactStream]:
    """To a learner without a trainer."""
    config = ServiceConfig(
        domain=domain_file, data=tmp_path / "data", listen="127.0.0.1:0", start_trainer=False
    )
    async with running(config) as service, grpc.aio.insecure_channel(service.address) as channel:
        stream = FactStream(channel, "bench:1")
        await stream.open()
        yield stream


@pytest.fixture
def reader(stream: FactStream, tmp_path: Path) -> Iterator[JournalReader]:
    """Of what the stream delivers."""
    with JournalReader(journal_path(tmp_path / "data")) as reader:
        yield reader


def test_a_turn_is_a_fact_of_about_1_kb_that_the_journal_takes(facts: Facts) -> None:
    turns = facts.turns(3 * DIALOGUE_TURNS)
    assert all(900 < turn.ByteSize() < 1100 for turn in turns)
    rows, refused = to_rows(turns, "bench")
    assert (len(rows), refused) == (30, [])
    assert len({row.key for row in rows}) == 30
    assert len({row.dialogue_id for row in rows}) == 3


def test_the_turns_of_a_dialogue_follow_each_other_across_calls(facts: Facts) -> None:
    first, second = facts.turns(1) + facts.turns(1)
    assert second.decided.parent_id == first.decided.decision_id
    assert (first.decided.index, second.decided.index) == (0, 1)


def test_a_batch_lacks_its_sequence_number_alone(facts: Facts) -> None:
    turns = facts.turns(BATCH_FACTS + 3)
    first, rest = batches(turns)
    head = training_pb2.FactBatch(sequence=7).SerializeToString()
    assert training_pb2.FactBatch.FromString(head + first) == training_pb2.FactBatch(
        sequence=7, facts=turns[:BATCH_FACTS]
    )
    assert list(training_pb2.FactBatch.FromString(rest).facts) == turns[BATCH_FACTS:]


async def test_a_stream_delivers_more_than_its_window_and_the_journals_groups_are_seen(
    facts: Facts, stream: FactStream, reader: JournalReader
) -> None:
    turns = facts.turns(200)
    async with watched_groups(reader) as groups:
        await stream.deliver(batches(turns, size=2))
        await stream.deliver(batches(facts.turns(10), size=1), every_s=0.001)
    assert sum(groups) == reader.last_cursor() == 210
    assert [row.fact for row in reader.read_after(0, 200)] == turns
    assert {row.actor for row in reader.read_after(0)} == {"bench:1"}


async def test_every_rated_turn_is_a_lesson(
    facts: Facts, stream: FactStream, reader: JournalReader, domain_file: Path
) -> None:
    await stream.deliver(batches(facts.rated_turns(20)))
    assembler = Assembler(Domain.load(domain_file), reader.dialogues, reader.domain)
    changes = assembler.assemble(reader.read_after(0))
    assert [change.lesson for change in changes] == [False, True] * 20


async def test_a_stream_stops_sending_when_it_is_enough(
    facts: Facts, stream: FactStream, reader: JournalReader
) -> None:
    await stream.deliver(batches(facts.turns(3)), enough=lambda: True)
    assert reader.last_cursor() == 0


async def test_a_refused_fact_ends_the_measurement(facts: Facts, stream: FactStream) -> None:
    (turn,) = facts.turns(1)
    turn.key = "?"
    with pytest.raises(DeploymentError, match="refused"):
        await asyncio.wait_for(stream.deliver(batches([turn])), 10)


async def test_straight_sqlite_writes_what_the_journal_does(
    facts: Facts, stream: FactStream, reader: JournalReader, tmp_path: Path
) -> None:
    turns = facts.turns(10)
    await stream.deliver(batches(turns))
    path = tmp_path / "straight.sqlite"
    with StraightSqlite(path) as straight:
        straight.write(to_rows(turns, "bench:1")[0], [4, 5, 1])
        with JournalReader(path) as other:
            assert other.read_after(0) == reader.read_after(0)
    assert schema(path) == schema(journal_path(tmp_path / "data"))


def schema(path: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        mode = connection.execute("PRAGMA journal_mode").fetchall()
        return mode + connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def test_a_bare_append_grows_by_4_kb(tmp_path: Path) -> None:
    with BareAppend(tmp_path / "bare") as bare:
        assert bare.seconds() > 0
        bare.seconds()
    assert (tmp_path / "bare").stat().st_size == 8192


def test_a_phase_counts_updates_a_second_and_a_second_of_cpu() -> None:
    phase = Phase()
    phase.add(Mark(10.0, 1.0, 100, 0, 0), Mark(14.0, 2.0, 500, 20_000, 16_000))
    assert (phase.per_s, phase.per_cpu_s) == ([100.0], [400.0])
    assert (phase.facts_per_s, phase.read_per_s) == ([5000.0], [4000.0])


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert median_ratio([1, 8, 3], [2, 2, 4]) == 0.75


def test_there_are_at_least_five_rounds_and_the_table_knows_the_keys() -> None:
    assert min(SHORT.rounds, FULL.rounds) >= 5
    report = {
        "name": "ingest",
        "ratios": {"vs_sqlite": 0.9, "ack_vs_fsync": 11.0},
        "goals": {"vs_sqlite": 0.8, "ack_vs_fsync": 10.0},
    }
    assert list(table([report]).columns[4].cells) == ["met", "missed"]
