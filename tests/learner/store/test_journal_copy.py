"""The journal in a store: what was shipped is what a learner on another disk goes on from."""

from pathlib import Path

import pytest

from turnwise_learner.journal import journal_path
from turnwise_learner.store import StoreError, StoreRefusedError, segments
from turnwise_learner.store.journal_copy import STATE
from turnwise_learner.store.objects import ObjectStore
from turnwise_learner.store.restore import JUMP, restore
from turnwise_learner.store.segments import (
    Segment,
    Takeover,
    chain,
    counting,
    end_of,
    merged,
    next_segments,
    to_merge,
)


def ship(written, store: ObjectStore) -> int:
    copy = written.copy_to(store)
    copy.ship()
    copy.close()
    return copy.through


def shipped(store: ObjectStore) -> list[str]:
    return sorted(name for name in store.sizes("journal") if name != "state.json")


def test_what_was_shipped_is_restored_and_the_rest_is_not(uri, store, written):
    old = written()
    old.set_meta("standing_orders", '{"paused": true}')
    old.begin_generation(7)
    old.tell_actor(12)
    old.keep_not(3)
    old.add(5000)
    assert ship(old, store) == 5000
    shipped_facts = old.facts
    old.add(3)
    assert restore(uri, old.data.parent / "new")
    new = written("new")
    assert new.facts == shipped_facts
    assert new.counts == {"1": 2500, "2": 2500}
    assert {name: new.meta[name] for name in ("journal_id", "schema", "standing_orders")} == {
        name: old.meta[name] for name in ("journal_id", "schema", "standing_orders")
    }
    for table in ("domains", "actors", "not_kept"):
        assert new.table(table) == old.table(table) != []
    assert not list(new.data.glob(".*"))
    new.add(1)
    assert new.last == 5000 + JUMP + 1  # a position that may have been told is not told again


def test_a_copy_of_before_facts_were_numbered_is_restored(uri, store, written):
    old = written()
    old.add(3)
    ship(old, store)
    state = store.get_json(STATE)
    store.put_json(STATE, {name: state[name] for name in ("meta", "domains", "generations")})
    assert restore(uri, old.data.parent / "new")
    assert written("new").facts == old.facts


def test_epoch_and_generation_go_on_far_above_those_that_may_be_lost(uri, store, written):
    old = written()
    old.begin_generation(7)
    old.add(1)
    ship(old, store)
    for number, name in enumerate(("one", "two"), start=1):  # the first is lost before it ships anything
        restore(uri, old.data.parent / name)
        assert written(name).epoch == number * JUMP + 1 + 1
        assert [row[:2] for row in written(name).table("generations")] == [
            (7, "start"),
            (number * JUMP + 7, "restore"),
        ]


def test_only_what_is_new_is_shipped(store, written):
    journal = written()
    journal.add(10)
    copy = journal.copy_to(store)
    copy.ship()
    before = {name: store.get(f"journal/{name}") for name in store.sizes("journal")}
    copy.ship()
    assert {name: store.get(f"journal/{name}") for name in store.sizes("journal")} == before
    journal.add(5)
    journal.tell_actor(15)
    copy.ship()
    (new,) = set(store.sizes("journal")) - set(before)
    assert Segment.parse(new) == Segment(11, 15, 1)
    assert {name: store.get(f"journal/{name}") for name in before} == before
    copy.close()


def test_a_restarted_learner_ships_on_from_where_the_store_is(store, written):
    journal = written()
    journal.add(10)
    ship(journal, store)
    journal.set_meta("epoch", "2")
    journal.add(10)
    assert ship(journal, store) == 20
    assert shipped(store) == [
        "facts-000000000001-000000000010-e1-l0.sqlite.gz",
        "facts-000000000011-000000000020-e2-l0.sqlite.gz",
    ]


def test_small_segments_are_merged_and_nothing_is_missing(uri, store, written):
    journal = written()
    copy = journal.copy_to(store)
    for _ in range(20):
        journal.add(2)
        copy.ship()
    copy.close()
    levels = [segment.level for name in shipped(store) if (segment := Segment.parse(name))]
    assert levels == [1, 0, 0, 0, 0]
    restore(uri, journal.data.parent / "new")
    assert written("new").facts == journal.facts


def test_parts_that_a_killed_merge_left_count_no_more(uri, store, written, monkeypatch):
    journal = written()
    copy = journal.copy_to(store)

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(copy, "_remove", killed)
    for _ in range(15):
        journal.add(2)
        copy.ship()
    journal.add(2)
    with pytest.raises(KeyboardInterrupt):
        copy.ship()
    copy.close()
    assert len(shipped(store)) == 17
    restore(uri, journal.data.parent / "new")
    assert written("new").facts == journal.facts
    # The one that was killed comes back after all, too late; the new one clears up.
    ship(written("new"), store)
    assert len(shipped(store)) == 1


def test_months_of_small_segments_stay_a_hundred_objects_without_a_gap():
    found: list[Segment] = []
    for end in range(7, 700_000, 7):
        for segment in next_segments(end_of(found), end, 1):
            found.append(segment)
            while parts := to_merge(found):
                found[-len(parts) :] = [merged(parts, 1)]
        if end % 9973 == 0:
            assert chain(found) == found
            assert end_of(found) == end
    assert len(found) < 60
    assert max(segment.positions for segment in found) < 2 * segments.FULL_POSITIONS


def test_a_long_journal_is_shipped_in_pieces(uri, store, written, monkeypatch):
    monkeypatch.setattr(segments, "FULL_POSITIONS", 1000)
    journal = written()
    journal.add(2500)
    ship(journal, store)
    assert [Segment.parse(name) for name in shipped(store)] == [
        Segment(1, 1000, 1, 9),
        Segment(1001, 2000, 1, 9),
        Segment(2001, 2500, 1, 0),
    ]
    restore(uri, journal.data.parent / "new")
    assert written("new").facts == journal.facts


def test_a_torn_newest_segment_is_passed_over_and_shipping_goes_on_before_it(uri, store, written):
    journal = written()
    copy = journal.copy_to(store)
    for _ in range(2):
        journal.add(4)
        copy.ship()
    copy.close()
    torn = f"journal/{shipped(store)[-1]}"
    store.put(torn, store.get(torn)[:-20])
    restore(uri, journal.data.parent / "new")
    new = written("new")
    assert new.facts == journal.facts[:4]
    new.add(6, "anew")
    ship(new, store)
    restore(uri, journal.data.parent / "third")
    assert written("third").facts == new.facts


@pytest.mark.parametrize("harm", ["torn", "empty", "gone"])
def test_an_older_segment_that_is_not_whole_restores_nothing(harm, uri, store, written):
    journal = written()
    copy = journal.copy_to(store)
    for _ in range(3):
        journal.add(4)
        copy.ship()
    copy.close()
    name = f"journal/{shipped(store)[1]}"
    if harm == "gone":
        store.delete(name)
    else:
        store.put(name, store.get(name)[:100] if harm == "torn" else b"")
    with pytest.raises(
        StoreError, match="missing in the store after position 4" if harm == "gone" else "is torn"
    ):
        restore(uri, journal.data.parent / "new")
    assert not journal_path(journal.data.parent / "new").exists()


def test_a_gap_is_closed_by_the_journal_itself(uri, store, written):
    journal = written()
    copy = journal.copy_to(store)
    for _ in range(3):
        journal.add(4)
        copy.ship()
    copy.close()
    store.delete(f"journal/{shipped(store)[1]}")
    journal.add(1)
    assert ship(journal, store) == 13
    restore(uri, journal.data.parent / "new")
    assert written("new").facts == journal.facts


def test_a_store_of_another_journal_is_refused_and_left_as_it_is(store, written):
    written().add(3)
    ship(written(), store)
    before = {name: store.get(name) for name in store.sizes("")}
    other = written("other")
    other.add(9)
    with pytest.raises(StoreRefusedError, match=f"belongs to journal {written().meta['journal_id']}"):
        other.copy_to(store)
    assert {name: store.get(name) for name in store.sizes("")} == before


def test_an_older_copy_of_the_journal_is_refused(uri, store, written):
    journal = written()
    journal.add(3)
    ship(journal, store)
    restore(uri, journal.data.parent / "older")
    older = written("older")
    journal.set_meta("epoch", str(older.epoch))
    journal.add(3)
    ship(journal, store)
    with pytest.raises(StoreRefusedError, match="facts up to 6, but the journal here ends at 3"):
        older.copy_to(store)


def test_a_learner_whose_store_was_taken_over_writes_no_more_to_it(uri, store, written):
    old = written()
    old.add(3)
    copy = old.copy_to(store)
    copy.ship()
    restore(uri, old.data.parent / "new")
    old.add(1)
    with pytest.raises(StoreRefusedError, match="another learner has gone on"):
        copy.ship()
    copy.close()
    with pytest.raises(StoreRefusedError, match="another learner has gone on"):
        old.copy_to(store)


def test_what_was_written_after_a_takeover_by_the_one_before_does_not_count():
    found = [Segment(1, 5, 1), Segment(6, 9, 1), Segment(6, 7, 1_000_002), Segment(8, 8, 1_000_002)]
    taken = [Takeover(epoch=1_000_001, generation=1_000_001, cursor=5)]
    assert chain(counting(found, taken)) == [found[0], found[2], found[3]]


def test_a_data_folder_with_a_journal_is_never_overwritten(uri, store, written):
    written().add(3)
    ship(written(), store)
    other = written("other")
    other.add(1)
    assert not restore(uri, other.data)
    assert other.last == 1


def test_a_log_without_its_journal_is_not_overwritten(uri, store, written, tmp_path: Path):
    written().add(3)
    ship(written(), store)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "journal.sqlite-wal").write_bytes(b"facts")
    with pytest.raises(StoreError, match=r"journal\.sqlite-wal lies there without journal\.sqlite"):
        restore(uri, tmp_path / "new")


def test_an_empty_store_restores_nothing_and_must_be_writable(uri, store, tmp_path: Path):
    assert not restore(uri, tmp_path / "new")
    assert list(store.sizes("")) == ["turnwise.txt"]


def test_a_bucket_that_is_not_there_is_told_before_a_journal_begins(buckets, tmp_path: Path):
    with pytest.raises(OSError, match="no-such-bucket"):
        restore(buckets.uri("no-such-bucket"), tmp_path)


@pytest.mark.parametrize("uri_", ["nosuch://place", "s3://"])
def test_a_uri_that_is_none_is_refused(uri_, tmp_path: Path):
    with pytest.raises(StoreRefusedError, match="--checkpoint-store"):
        restore(uri_, tmp_path)
