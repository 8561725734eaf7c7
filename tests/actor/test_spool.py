from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from turnwise.v1 import training_pb2
from turnwise_actor.facts import PackedFact, pack
from turnwise_actor.spool import Spool, SpoolFullError


def fact(key: str, size: int = 0) -> PackedFact:
    return pack(training_pb2.Fact(key=key, dialogue_id="d", started=training_pb2.Started(user="u" * size)))


def open_spool(parent: Path, name: str = "a", max_bytes: int = 10_000, segment_bytes: int = 1000) -> Spool:
    return Spool(parent, name, max_bytes=max_bytes, segment_bytes=segment_bytes)


async def keys_of(spool: Spool) -> list[str]:
    """Reads a spool to its end, deleting as the uplink does."""
    keys = []
    while (segment := spool.oldest()) is not None:
        keys += [each.key for each in await spool.read(segment)]
        await spool.remove(segment)
    return keys


def crash(spool: Spool) -> None:
    """What the death of the process does: the lock is let go, nothing else happens."""
    os.close(spool._lock)


async def test_facts_come_back_in_order_over_many_segments(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    for number in range(30):
        await spool.append([fact(f"k{number}", 90)])
    assert len(list(spool.folder.glob("*.facts"))) > 2
    assert await keys_of(spool) == [f"k{number}" for number in range(30)]
    assert spool.size_bytes == 0
    await spool.close()
    assert not spool.folder.exists()


async def test_what_is_appended_while_a_segment_is_read_is_kept(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    await spool.append([fact("k1")])
    segment = spool.oldest()
    assert segment is not None
    await spool.read(segment)
    await spool.append([fact("k2")])
    await spool.remove(segment)
    assert await keys_of(spool) == ["k2"]
    await spool.close()


async def test_facts_that_come_together_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path, max_bytes=100_000, segment_bytes=100_000)
    synced: list[int] = []
    sync: Callable[[int], None] = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), sync(file)))
    await asyncio.gather(*(spool.append([fact(f"k{number}")]) for number in range(100)))
    assert len(synced) < 5
    assert len(await keys_of(spool)) == 100
    await spool.close()


async def test_a_restarted_process_has_what_was_fsynced(tmp_path: Path) -> None:
    before = open_spool(tmp_path)
    await before.append([fact("k1"), fact("k2")])
    crash(before)
    after = open_spool(tmp_path)
    assert after.folder == before.folder
    await after.append([fact("k3")])
    assert await keys_of(after) == ["k1", "k2", "k3"]
    await after.close()


@pytest.mark.parametrize("cut", [1, 5, 30])
async def test_a_torn_tail_is_cut_at_the_last_good_record(tmp_path: Path, cut: int) -> None:
    before = open_spool(tmp_path)
    await before.append([fact("k1", 40)])
    await before.append([fact("k2", 40)])
    segment = before.oldest()
    assert segment is not None
    os.truncate(segment, segment.stat().st_size - cut)
    crash(before)
    after = open_spool(tmp_path)
    assert [each.key for each in await after.read(segment)] == ["k1"]
    assert [each.key for each in await after.read(segment)] == ["k1"], "cut once, clean from then on"
    await after.close()


async def test_a_flipped_bit_is_not_believed(tmp_path: Path) -> None:
    before = open_spool(tmp_path)
    await before.append([fact("k1", 40)])
    await before.append([fact("k2", 40)])
    segment = before.oldest()
    assert segment is not None
    content = bytearray(segment.read_bytes())
    content[-10] ^= 1
    segment.write_bytes(content)
    crash(before)
    after = open_spool(tmp_path)
    assert await keys_of(after) == ["k1"]
    await after.close()


async def test_a_file_without_a_whole_head_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "00000007.facts").write_bytes(b"TWS")
    spool = open_spool(tmp_path)
    assert await keys_of(spool) == []
    await spool.append([fact("k1")])
    assert await keys_of(spool) == ["k1"]
    await spool.close()


async def test_spools_of_the_dead_are_taken_over_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    dead, living, heir = (
        open_spool(tmp_path, "dead"),
        open_spool(tmp_path, "living"),
        open_spool(tmp_path, "heir"),
    )
    await dead.append([fact("k1")])
    await living.append([fact("k2")])
    await heir.append([fact("k3")])
    crash(dead)
    assert await heir.adopt() == 1
    assert await heir.adopt() == 0
    assert not dead.folder.exists()
    assert await keys_of(heir) == ["k3", "k1"]
    assert await keys_of(living) == ["k2"]
    await heir.close()
    await living.close()


async def test_a_spool_too_large_to_take_over_is_left_for_later(tmp_path: Path) -> None:
    dead, heir = open_spool(tmp_path, "dead"), open_spool(tmp_path, "heir", max_bytes=500)
    await dead.append([fact("k1", 400)])
    await heir.append([fact("k2", 200)])
    crash(dead)
    assert await heir.adopt() == 0
    assert await keys_of(heir) == ["k2"]
    assert await heir.adopt() == 1
    assert await keys_of(heir) == ["k1"]
    await heir.close()


async def test_two_processes_of_one_name_get_a_spool_each(tmp_path: Path) -> None:
    one, other = open_spool(tmp_path), open_spool(tmp_path)
    assert one.folder != other.folder
    await one.close()
    await other.close()


async def test_a_full_spool_takes_nothing_until_there_is_room(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, max_bytes=1000)
    await spool.append([fact("k1", 800)])
    with pytest.raises(SpoolFullError, match="of at most 1000"):
        await spool.append([fact("k2", 300)])
    assert spool.full
    assert await keys_of(spool) == ["k1"]
    await spool.append([fact("k2", 300)])
    await spool.close()


async def test_a_disk_that_takes_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path)
    await spool.append([fact("k1")])

    def no_space(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", no_space)
        with pytest.raises(SpoolFullError, match="No space left"):
            await spool.append([fact("k2")])
        assert spool.full
    await spool.append([fact("k3")])
    assert {"k1", "k3"} <= set(await keys_of(spool))
    await spool.close()


async def test_a_segment_that_could_not_be_begun_takes_no_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk may have room for a file's name and not for its head."""
    spool = open_spool(tmp_path)

    def no_space(file: int, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("turnwise_actor.spool._write_all", no_space)
        for _ in range(3):
            with pytest.raises(SpoolFullError, match="No space left"):
                await spool.append([fact("k1")])
    assert not list(spool.folder.glob("*.facts"))
    await spool.append([fact("k2")])
    assert await keys_of(spool) == ["k2"]
    await spool.close()


async def test_a_write_that_failed_leaves_no_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(tmp_path)
    await spool.append([fact("k1")])
    segment = spool.oldest()
    assert segment is not None
    size = segment.stat().st_size

    def half(file: int, content: bytes) -> None:
        os.write(file, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("turnwise_actor.spool._write_all", half)
        with pytest.raises(SpoolFullError, match="No space left"):
            await spool.append([fact("k2")])
    assert segment.stat().st_size == size
    assert await keys_of(spool) == ["k1"]
    await spool.close()


async def test_a_removal_that_nobody_waits_for_any_more_is_a_removal(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    await spool.append([fact("k1")])
    segment = spool.oldest()
    assert segment is not None
    removing = asyncio.create_task(spool.remove(segment))
    await asyncio.sleep(0)
    removing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removing
    assert spool.oldest() is None
    await spool.close()
    assert not segment.exists()
