"""TensorBoard's event files, read back as its readers do."""

import errno
import logging
import os
import struct
from io import FileIO
from pathlib import Path

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_learner.__main__ import _config, _parser
from turnwise_learner.trainer.__main__ import parse
from turnwise_learner.trainer.event_log import EventLog

pytestmark = pytest.mark.filterwarnings("ignore")


def report(updates: int, generation: int = 1, **more: float) -> training_pb2.TrainerReport:
    version = dialogue_pb2.PolicyVersion(generation=generation, number=1)
    return training_pb2.TrainerReport(updates=updates, policy_version=version, **more)  # type: ignore[arg-type]


def checked(data: bytes, checksum: bytes) -> bytes:
    """The data, if the checksum is theirs: masked as TensorFlow's record files have it."""
    crc = crc32c(data)
    assert struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF) == checksum
    return data


def records(file: Path) -> list[Event]:
    """The whole records of one file."""
    found, rest = [], file.read_bytes()
    while len(rest) >= 12:
        (size,) = struct.unpack("<Q", checked(rest[:8], rest[8:12]))
        if len(rest) < 16 + size:
            break
        found.append(Event.FromString(checked(rest[12 : 12 + size], rest[12 + size : 16 + size])))
        rest = rest[16 + size :]
    return found


def events(root: Path, generation: int) -> dict[int, dict[str, float]]:
    """Scalars by step, of all files of one generation in the order of their names."""
    found: dict[int, dict[str, float]] = {}
    for file in sorted((root / f"generation-{generation}").glob("events.out.tfevents.*")):
        first, *others = records(file)
        assert first.file_version == "brain.Event:2"
        for event in others:
            assert event.step not in found
            found[event.step] = {value.tag: value.simple_value for value in event.summary.value}
    return found


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_report_is_read_back_by_the_number_of_its_updates(tmp_path):
    log = EventLog(tmp_path, interval_s=0.0)
    log.add(report(8, loss=0.5, mean_abs_td_error=0.25, lessons=1, replay_rows=3))
    log.add(report(16, loss=0.125, updates_per_s=2.5, rated_turns=2, turns=4, updates_owed=6))
    log.close()
    told = events(tmp_path, 1)
    assert list(told) == [8, 16]
    assert {name: value for name, value in told[8].items() if value} == {
        "training/loss": 0.5,
        "training/mean_abs_td_error": 0.25,
        "experience/lessons": 1,
        "replay/rows": 3,
    }
    assert {name: value for name, value in told[16].items() if value} == {
        "training/loss": 0.125,
        "training/updates_per_s": 2.5,
        "training/updates_owed": 6,
        "experience/rated_turns": 2,
        "experience/turns": 4,
    }


def test_events_are_seconds_apart_and_rarer_the_older_a_generation_is(tmp_path):
    clock = Clock()
    log = EventLog(tmp_path, interval_s=5.0, clock=clock)
    written = []
    for updates, later_s in enumerate((0, 4, 1, 0.1, 1e6, 5, 190, 10)):
        clock.now += later_s
        log.add(report(updates))
        written.append(updates in events(tmp_path, 1))
    assert written == [True, False, True, False, True, False, False, True]


def test_nothing_is_written_while_nothing_is_learned_but_the_last_word_is(tmp_path):
    clock = Clock()
    log = EventLog(tmp_path, clock=clock)
    log.add(report(8))
    clock.now += 100
    log.add(report(8, loss=1.0))
    log.add(report(9, loss=2.0))
    log.add(report(10, loss=3.0), now=True)
    assert [told["training/loss"] for told in events(tmp_path, 1).values()] == [0, 2, 3]


def test_each_generation_has_a_folder_and_the_newest_are_kept(tmp_path):
    (tmp_path / "mine").mkdir()
    for generation in range(8, 13):
        log = EventLog(tmp_path, keep=3)
        log.add(report(8, generation))
        log.close()
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine",
        "generation-10",
        "generation-11",
        "generation-12",
    }
    log = EventLog(tmp_path, keep=3)
    log.add(report(8, 1))  # of another journal, in the same folder
    log.add(report(8, 2))
    assert {path.name for path in tmp_path.iterdir()} == {
        "mine",
        "generation-11",
        "generation-12",
        "generation-2",
    }


def test_a_folder_that_cannot_be_made_is_told_once_a_minute_and_raises_nothing(tmp_path, caplog):
    clock = Clock()
    root = tmp_path / "tensorboard"
    root.write_text("in the way")
    log = EventLog(root, interval_s=0.0, clock=clock)
    with caplog.at_level(logging.WARNING):
        for updates in range(100):
            clock.now += 0.7
            log.add(report(updates))
    assert caplog.text.count("TensorBoard's events cannot be written") == 2
    root.unlink()
    clock.now += 60
    log.add(report(100))
    assert list(events(root, 1)) == [100]


class FullDisk(FileIO):
    """A disk that is full after 1000 bytes: it takes a part of a record, and of the next one nothing."""

    def write(self, data, /):
        taken = data[: 1000 - self.tell()]
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(taken)


def test_a_disk_that_is_full_costs_events_and_nothing_else(tmp_path, monkeypatch, caplog):
    clock = Clock()
    log = EventLog(tmp_path, interval_s=0.0, clock=clock)
    with monkeypatch.context() as full:
        full.setattr("turnwise_learner.trainer.event_log.FileIO", FullDisk)
        for updates in range(5):
            log.add(report(updates))
    assert "cannot be written: [Errno 28]" in caplog.text
    log.add(report(50))
    clock.now += 60
    log.add(report(60))
    torn, whole = sorted((tmp_path / "generation-1").iterdir())
    assert torn.stat().st_size == 1000
    assert [event.step for event in records(torn)[1:]] == [0, 1]
    assert [event.step for event in records(whole)[1:]] == [60]


def test_the_learners_command_line_turns_it_off():
    for given, wanted in ((), True), (("--no-tensorboard",), False):
        learner = _config(_parser().parse_args(["--domain", "x.yaml", *given]))
        required = ("--data", "d", "--domain", "x.yaml", "--service", "127.0.0.1:1")
        assert parse([*required, *learner.trainer_options]).tensorboard is wanted
