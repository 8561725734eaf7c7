"""Checkpoints in a store: complete or absent, and as many kept as in the data folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from turnwise_learner.store.checkpoint_copies import CheckpointCopies, fetch, stored_checkpoints
from turnwise_learner.store.journal_copy import take_over
from turnwise_learner.store.objects import ObjectStore
from turnwise_learner.store.restore import restore
from turnwise_learner.store.segments import Takeover
from turnwise_learner.trainer.checkpoints import CheckpointFolder, Manifest, complete_in

DAY_MS = 86_400_000
FAR = 10**9


def save(
    root: Path, number: int, *, cursor: int = 0, day: int = 0, pinned: bool = False, size: int = 100
) -> str:
    """A checkpoint in a data folder, as a trainer leaves it."""
    manifest = Manifest(
        updates=number,
        journal_id="j",
        journal_cursor=cursor,
        version=f"1.{number}",
        domain_fingerprint="f",
        network="{}",
        saved_ms=day * DAY_MS + number,
        pinned=pinned,
    )

    def fill(aside: Path) -> None:
        (aside / "learner").mkdir(parents=True)
        (aside / "algorithm_state.pkl").write_bytes(os.urandom(size))
        (aside / "learner" / "state.pkl").write_bytes(f"state {number}".encode())

    name = CheckpointFolder(root).add(f"step-{number:09d}", manifest, fill).path.name
    os.utime(root / "LATEST", ns=(0, number))  # clocks of filesystems are coarse
    return name


def names(store: ObjectStore) -> list[str]:
    return [checkpoint.path.name for checkpoint in stored_checkpoints(store)]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "turnwise.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_newest_is_copied_and_comes_back_as_it_was(store, tmp_path: Path):
    root = tmp_path / "checkpoints"
    save(root, 1)
    name = save(root, 2)
    CheckpointCopies(store, root, keep_last=5).copy(FAR)
    assert names(store) == [name]
    assert store.get("checkpoints/LATEST").decode() == name
    (stored,) = stored_checkpoints(store)
    back = fetch(store, stored, CheckpointFolder(tmp_path / "back"))
    assert contents(back.path) == contents(root / name)
    assert (back.path / "turnwise.json").read_text() == (root / name / "turnwise.json").read_text()
    assert CheckpointFolder(tmp_path / "back").latest_name() == name


class KilledError(BaseException):
    """Stands for a process that ends."""


class Mortal:
    """A store whose user is killed at its n-th change."""

    def __init__(self, store: ObjectStore, lives: int) -> None:
        self._store, self.lives = store, lives

    def __getattr__(self, name: str) -> object:
        if name in ("put", "put_file", "delete", "delete_folder"):
            self.lives -= 1
            if self.lives < 0:
                raise KilledError
        return getattr(self._store, name)


def test_killed_at_any_moment_it_leaves_complete_checkpoints_and_the_next_one_clears_up(tmp_path: Path):
    store, root, lives = ObjectStore.open(str(tmp_path / "store")), tmp_path / "checkpoints", 0
    first = second = save(root, 1)
    CheckpointCopies(store, root, keep_last=1).copy(FAR)
    ended = False
    while not ended:
        second = save(root, 2 + lives, day=40 + lives)  # so that each one takes the place of the one before
        mortal = Mortal(store, lives)
        try:
            CheckpointCopies(mortal, root, keep_last=1, keep_days=1).copy(FAR)  # type: ignore[arg-type]
            ended = True
        except KilledError:
            assert names(store)[-1] in (first, second)
        newest = stored_checkpoints(store)[-1]
        back = fetch(store, newest, CheckpointFolder(tmp_path / f"back{lives}"))
        assert contents(back.path) == contents(root / newest.path.name)
        first = newest.path.name
        lives += 1
    assert lives > 6
    assert {path.partition("/")[0] for path in store.sizes("checkpoints")} == {second, "LATEST"}


KILLED_IN_MIDST = """
import sys
from pathlib import Path
from turnwise_learner.store.checkpoint_copies import CheckpointCopies
from turnwise_learner.store.journal_copy import take_over
from turnwise_learner.store.objects import ObjectStore

CheckpointCopies(ObjectStore.open(sys.argv[1]), Path(sys.argv[2]), 5).copy(10**9)
print("copied")
"""


def test_a_process_killed_in_the_midst_of_an_upload_leaves_the_one_before(buckets, tmp_path: Path):
    uri, root = buckets.uri(bucket := buckets.create()), tmp_path / "checkpoints"
    store = ObjectStore.open(uri)
    first = save(root, 1)
    CheckpointCopies(store, root, keep_last=5).copy(FAR)
    second = save(root, 2, size=64 << 20)  # many parts
    command = [sys.executable, "-c", KILLED_IN_MIDST, uri, str(root)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while not buckets.uploads(bucket):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.communicate()[0] == ""
    assert names(store) == [first]
    CheckpointCopies(store, root, keep_last=5).copy(FAR)
    assert names(store) == [first, second]


def test_retention_in_the_store_is_that_of_the_data_folder(store, tmp_path: Path):
    root = tmp_path / "checkpoints"
    copies = CheckpointCopies(store, root, keep_last=2, keep_days=2)
    saved = []
    for number, day in enumerate([1, 2, 2, 3, 3, 3, 3]):
        saved.append(save(root, number, day=day, pinned=number == 0))
        copies.copy(FAR)
    assert names(store) == [saved[n] for n in (0, 2, 5, 6)]
    left = {path.partition("/")[0] for path in store.sizes("checkpoints")} - {"LATEST"}
    assert left == set(names(store))


def test_one_that_is_pinned_later_is_pinned_in_the_store(store, tmp_path: Path):
    root = tmp_path / "checkpoints"
    copies = CheckpointCopies(store, root, keep_last=1, keep_days=1)
    name = save(root, 1)
    copies.copy(FAR)
    manifest = root / name / "turnwise.json"
    manifest.write_text(replace(Manifest.from_json(manifest.read_text()), pinned=True).to_json())
    os.utime(root / "LATEST", ns=(0, 77))
    copies.copy(FAR)
    save(root, 2)
    copies.copy(FAR)
    assert names(store) == [name, "step-000000002"]


def test_a_checkpoint_waits_for_its_journal(store, tmp_path: Path):
    root = tmp_path / "checkpoints"
    copies = CheckpointCopies(store, root, keep_last=5)
    name = save(root, 1, cursor=50)
    copies.copy(49)
    assert names(store) == []
    copies.copy(50)
    assert names(store) == [name]


def test_a_stored_one_is_not_copied_again(store, tmp_path: Path):
    root = tmp_path / "checkpoints"
    save(root, 1)
    CheckpointCopies(store, root, keep_last=5).copy(FAR)
    CheckpointCopies(Mortal(store, 0), root, keep_last=5).copy(FAR)  # type: ignore[arg-type]


def test_one_that_made_room_while_it_was_copied_is_given_up(store, tmp_path: Path):
    root = tmp_path / "checkpoints"
    save(root, 1)

    class Pruned(Mortal):
        def put_file(self, name: str, source: Path) -> None:
            (root / "step-000000001").rename(root / ".aside-step-000000001")
            self._store.put_file(name, source)

    CheckpointCopies(Pruned(store, FAR), root, keep_last=5).copy(FAR)  # type: ignore[arg-type]
    assert names(store) == []
    name = save(root, 2)
    CheckpointCopies(store, root, keep_last=5).copy(FAR)
    assert names(store) == [name]


HARMS: dict[str, Callable[[ObjectStore, str], None]] = {
    "a file is torn": lambda store, name: store.put(f"{name}/algorithm_state.pkl", b"half"),
    "a file is gone": lambda store, name: store.delete(f"{name}/learner/state.pkl"),
    "no manifest": lambda store, name: store.delete(f"{name}/turnwise.json"),
    "no manifest that can be read": lambda store, name: store.put(f"{name}/turnwise.json", b"{"),
    "ahead of the journal": lambda store, name: store.put(
        f"{name}/turnwise.json", _with(store.get(f"{name}/turnwise.json"), journal_cursor=5)
    ),
    "of another journal": lambda store, name: store.put(
        f"{name}/turnwise.json", _with(store.get(f"{name}/turnwise.json"), journal_id="other")
    ),
}


def _with(manifest: bytes, **more: object) -> bytes:
    return json.dumps({**json.loads(manifest), **more}).encode()


@pytest.mark.parametrize("harm", HARMS)
def test_a_newest_checkpoint_that_cannot_be_used_is_passed_over(harm, uri, store, written, tmp_path: Path):
    journal = written()
    journal.set_meta("journal_id", "j")
    journal.add(4)
    copy = journal.copy_to(store)
    copy.ship()
    copy.close()
    root = tmp_path / "checkpoints"
    copies = CheckpointCopies(store, root, keep_last=5)
    for number in (1, 2):
        save(root, number, cursor=2 + number)
        copies.copy(4)
    HARMS[harm](store, "checkpoints/step-000000002")
    assert restore(uri, tmp_path / "new")
    assert [checkpoint.path.name for checkpoint in complete_in(tmp_path / "new/checkpoints")] == [
        "step-000000001"
    ]
    assert [row[:3] for row in written("new").table("versions")] == [(1, 1, 1)]


def test_a_checkpoint_of_a_learner_that_another_one_took_over_from_does_not_count(
    uri, store, written, tmp_path: Path
):
    journal, root = written(), tmp_path / "checkpoints"
    journal.set_meta("journal_id", "j")
    copies = CheckpointCopies(store, root, keep_last=5)
    journal.add(3)
    for epoch in (1, 10):
        journal.set_meta("epoch", str(epoch))
        copy = journal.copy_to(store)
        copy.ship()
        copy.close()
        take_over(store, Takeover(epoch=9, generation=9, cursor=3))
        journal.add(1)
    for number in (1, 2):  # the second one has learned the old learner's fact 4
        save(root, number, cursor=2 + number)
        copies.copy(FAR)
    assert restore(uri, tmp_path / "new")
    assert written("new").last == 4
    assert [path.name for path in (tmp_path / "new/checkpoints").glob("step-*")] == ["step-000000001"]


def test_a_restore_that_was_interrupted_begins_again(uri, store, written, tmp_path: Path):
    journal, root, new = written(), tmp_path / "checkpoints", tmp_path / "new"
    journal.set_meta("journal_id", "j")
    journal.add(4)
    copy = journal.copy_to(store)
    copy.ship()
    copy.close()
    name = save(root, 1, cursor=4)
    CheckpointCopies(store, root, keep_last=5).copy(4)
    # What is left when it ends between the checkpoint and the journal, and in the midst of each.
    fetch(store, stored_checkpoints(store)[0], CheckpointFolder(new / "checkpoints"))
    (new / "checkpoints" / ".aside-step-000000009").mkdir()
    (new / ".restore").mkdir()
    (new / ".restore" / "journal.sqlite").write_bytes(b"half")
    assert restore(uri, new)
    assert written("new").facts == journal.facts
    assert sorted(path.name for path in (new / "checkpoints").iterdir()) == ["LATEST", name]
    assert not (new / ".restore").exists()
