import asyncio
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from turnwise.v1 import training_pb2
from turnwise_learner.journal import DECIDED, STARTED, JournalError, JournalReader, create_schema
from turnwise_learner.service import versions
from turnwise_learner.service.facts import FactRow, to_rows
from turnwise_learner.service.journal import Journal, JournalLock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    journal = Journal(path)
    yield journal
    await journal.close()


@pytest.fixture
def rows(make_facts):
    def rows(dialogue: str, decisions: int) -> list[FactRow]:
        return to_rows(make_facts(dialogue, decisions), "127.0.0.1:1")[0]

    return rows


async def test_submissions_that_arrive_together_share_a_commit(journal, rows):
    commits: list[int] = []
    journal.listen(commits.append)
    futures = [await journal.append(rows(f"a{n}", 1)) for n in range(200)]
    cursors = await asyncio.gather(*futures)
    assert cursors == [2 * n + 2 for n in range(200)]
    assert len(commits) < 50
    assert commits[-1] == journal.last_cursor == 400


async def test_facts_are_readable_elsewhere_once_their_future_is_done(journal, rows, path):
    await (await journal.append(rows("a", 3)))
    with JournalReader(path) as reader:
        assert [row.fact.key for row in reader.read_after(0)] == ["s:a", "d:a.0", "d:a.1", "d:a.2"]
        assert {row.actor for row in reader.read_after(0)} == {"127.0.0.1:1"}


async def test_a_known_fact_keeps_its_position_and_is_not_counted_again(journal, rows):
    first = await (await journal.append(rows("a", 2)))
    await (await journal.append(rows("b", 2)))
    assert await (await journal.append(rows("a", 2))) == first == 3
    assert journal.counts == {STARTED: 2, DECIDED: 4}


async def test_the_cursor_of_a_batch_is_at_or_beyond_every_fact_in_it(journal, rows):
    await (await journal.append(rows("a", 1)))
    mixed = [*rows("b", 1), *rows("a", 1)]
    assert await (await journal.append(mixed)) == 4


async def test_the_first_fact_of_a_key_is_kept(journal, make_facts, path):
    for text in ("first", "second"):
        await (await journal.append(to_rows(make_facts("a", 1, text=text), "")[0]))
    with JournalReader(path) as reader:
        assert reader.read_after(1)[0].fact.decided.observation.text == "first"


async def test_counts_epoch_and_identity_live_through_a_restart(path, rows):
    journal = Journal(path)
    await (await journal.append(rows("a", 5)))
    await (await journal.append(rows("a", 5)))
    await journal.close()
    again = Journal(path)
    assert (again.epoch, again.journal_id) == (journal.epoch + 1, journal.journal_id)
    assert again.counts == {STARTED: 1, DECIDED: 5}
    assert again.last_cursor == 6
    await again.close()


async def test_close_commits_what_was_submitted_and_folds_the_log_back(path, rows):
    journal = Journal(path)
    futures = [await journal.append(rows(f"a{n}", 1)) for n in range(20)]
    await journal.close()
    assert [future.result() for future in futures] == [2 * n + 2 for n in range(20)]
    assert not path.with_name("journal.sqlite-wal").exists()


async def test_a_full_queue_makes_submitters_wait(path, rows):
    journal = Journal(path, max_pending_bytes=2000)
    release = threading.Event()
    blocked = journal.submit(lambda _: release.wait(5))
    first = await journal.append(rows("a", 2))
    waiting = asyncio.create_task(journal.append(rows("b", 2)))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    release.set()
    await blocked
    assert await first == 3
    assert await (await waiting) == 6
    await journal.close()


async def test_a_commit_that_fails_is_told_and_the_next_one_works(journal, rows):
    await (await journal.append(rows("a", 1)))
    await journal.submit(lambda c: c.execute("PRAGMA max_page_count = 1").fetchall())
    with pytest.raises(JournalError, match="full"):
        await (await journal.append(rows("b", 500)))
    assert (journal.last_cursor, journal.counts) == (2, {STARTED: 1, DECIDED: 1})
    await journal.submit(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchall())
    await (await journal.append(rows("b", 500)))
    assert journal.counts == {STARTED: 2, DECIDED: 501}


@pytest.mark.parametrize("lost_bytes", [1, 100, 4000, 9000, 30000])
async def test_a_torn_end_of_the_log_costs_whole_commits_from_the_end_only(path, rows, tmp_path, lost_bytes):
    journal = Journal(path)
    for n in range(20):
        await (await journal.append(rows(f"a{n}", 3)))
    torn = tmp_path / "torn" / path.name
    torn.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{torn}{suffix}")
    await journal.close()
    with open(f"{torn}-wal", "r+b") as wal:
        wal.truncate(wal.seek(0, 2) - lost_bytes)
    again = Journal(torn)
    with JournalReader(torn) as reader:
        keys = [row.fact.key for row in reader.read_after(0)]
    everything = [row.key for n in range(20) for row in rows(f"a{n}", 3)]
    assert keys == everything[: len(keys)]
    assert 0 < len(keys) < 80
    assert len(keys) % 4 == 0
    assert sum(again.counts.values()) == len(keys)
    await (await again.append(rows("a19", 3)))
    assert again.last_cursor == len(keys) + 4
    await again.close()


async def test_generations_grow_and_stay_above_what_is_on_air(journal):
    numbers = [
        await journal.submit(lambda c, above=above: versions.begin_generation(c, "start", above))
        for above in (0, 0, 7, 0)
    ]
    assert numbers == [1, 2, 8, 9]


def test_a_second_learner_is_kept_off_the_journal(tmp_path):
    lock = JournalLock(tmp_path / "journal.lock")
    with pytest.raises(JournalError, match=r"another learner \(pid \d+\) holds"):
        JournalLock(tmp_path / "journal.lock")
    lock.release()
    JournalLock(tmp_path / "journal.lock").release()


async def test_a_file_that_is_no_journal_is_refused(path):
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(path)


async def test_a_journal_of_another_schema_is_refused(path):
    connection = sqlite3.connect(path, isolation_level=None)
    create_schema(connection)
    connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema'")
    connection.close()
    with pytest.raises(JournalError, match="schema is '99'"):
        Journal(path)
    with pytest.raises(JournalError, match="schema is '99'"):
        JournalReader(path)


async def test_a_journal_of_before_facts_were_numbered_is_used_on(path, rows):
    connection = sqlite3.connect(path, isolation_level=None)
    create_schema(connection)
    connection.executescript("DROP TABLE actors; DROP TABLE not_kept")
    connection.close()
    with JournalReader(path) as reader:
        assert reader.sequences() == ([], [])
        assert reader.state().actors == []
    journal = Journal(path)
    report = training_pb2.ActorReport(incarnation="0123456789abcdef", journaled_through=3)
    journal.note_actor(report, "a:1")
    await journal.close()
    with JournalReader(path) as reader:
        assert reader.sequences() == ([("0123456789abcdef", "a:1", 3)], [])


def test_a_reader_says_when_there_is_no_journal(path):
    with pytest.raises(JournalError, match="no journal at"):
        JournalReader(path)


async def test_a_reader_pages_by_cursor_and_by_dialogue(journal, rows, path):
    await (await journal.append(rows("a", 2)))
    await (await journal.append(rows("b", 2)))
    with JournalReader(path) as reader:
        assert [row.seq for row in reader.read_after(0, limit=4)] == [1, 2, 3, 4]
        assert [row.seq for row in reader.read_after(4)] == [5, 6]
        assert [row.seq for row in reader.dialogues(["a", "b"], 5)] == [2, 3, 5]  # 1 and 4 began them
        assert [row.seq for row in reader.dialogues(["b", "none"], 5)] == [5]
        assert reader.last_cursor() == 6
        assert reader.journal_id == journal.journal_id
        assert reader.domain("none") is None


async def test_an_idle_reader_does_not_let_the_log_grow(journal, make_facts, path):
    with JournalReader(path) as reader:
        for n in range(60):
            await (await journal.append(to_rows(make_facts(f"a{n}", 100, text="x" * 4000), "")[0]))
            reader.read_after(journal.last_cursor - 10)
        assert path.stat().st_size > 20e6
        assert path.with_name("journal.sqlite-wal").stat().st_size < 12e6
