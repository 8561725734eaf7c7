"""The trainer's reports as TensorBoard event files: `tensorboard --logdir DATA/logs/tensorboard`."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import struct
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from turnwise.v1 import training_pb2

logger = logging.getLogger("turnwise.trainer")

_PREFIX = "generation-"
_RETRY_S = 60.0
_FINEST_SHARE = 1 / 5000
"""Of a generation's age that two events are apart at least: 2 minutes after a week. A year is some 20 MB."""
_SCALARS: dict[str, Callable[[training_pb2.TrainerReport], float]] = {
    "training/loss": lambda report: report.loss,
    "training/mean_abs_td_error": lambda report: report.mean_abs_td_error,
    "training/updates_per_s": lambda report: report.updates_per_s,
    "training/updates_owed": lambda report: report.updates_owed,
    "experience/turns": lambda report: report.turns,
    "experience/rated_turns": lambda report: report.rated_turns,
    "experience/lessons": lambda report: report.lessons,
    "replay/rows": lambda report: report.replay_rows,
    "exploration/teach_epsilon": lambda report: report.exploration.teach_epsilon,
    "exploration/serve_epsilon": lambda report: report.exploration.serve_epsilon,
    "exploration/teach_temperature": lambda report: report.exploration.teach_temperature,
    "exploration/serve_temperature": lambda report: report.exploration.serve_temperature,
}


class EventLog:
    """Writes reports by the number of updates, in one folder a generation.

    Nothing here stops the trainer: what the disk does not take is left out, with a line in the log, and a
    new file is begun a minute later, because readers get no further than a torn record.

    Args:
        root: Parent of the generations' folders.
        keep: Newest generations kept, with the one being written.
        interval_s: Shortest time between two events; it grows with the generation's age.
        clock: In seconds; only differences count.
    """

    def __init__(
        self,
        root: Path,
        keep: int = 20,
        interval_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._keep, self._interval_s, self._clock = root, keep, interval_s, clock
        self._file: FileIO | None = None
        self._files = 0
        self._generation = self._updates = -1
        self._began_at = self._due_at = clock()

    def add(self, report: training_pb2.TrainerReport, now: bool = False) -> None:
        """Writes a report if updates were done since the last one and it is due, or it must be now."""
        generation = report.policy_version.generation
        if generation != self._generation:
            self.close()
            self._generation, self._updates = generation, -1
            self._began_at = self._due_at = self._clock()
        if report.updates == self._updates or not (now or self._clock() >= self._due_at):
            return
        pause_s = max(self._interval_s, (self._clock() - self._began_at) * _FINEST_SHARE)
        try:
            self._write(_event(report))
            self._updates = report.updates
        except OSError as error:
            logger.warning("TensorBoard's events cannot be written: %s", error)
            self.close()
            pause_s = _RETRY_S
        self._due_at = self._clock() + pause_s

    def close(self) -> None:
        """Lets go of the file; the next event begins another."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _write(self, event: Event) -> None:
        if self._file is None:
            self._file = self._begin_file()
            _append(self._file, Event(wall_time=time.time(), file_version="brain.Event:2"))
        _append(self._file, event)

    def _begin_file(self) -> FileIO:
        folder = self._root / f"{_PREFIX}{self._generation}"
        folder.mkdir(parents=True, exist_ok=True)
        self._prune(folder)
        self._files += 1
        # In the order of their names: that is how readers follow them.
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{self._files:06d}"
        return FileIO(folder / f"events.out.tfevents.{name}", "x")

    def _prune(self, current: Path) -> None:
        numbered = [
            (int(number), path)
            for path in self._root.glob(f"{_PREFIX}*")
            if path != current and (number := path.name.removeprefix(_PREFIX)).isdecimal()
        ]
        for _, path in sorted(numbered, reverse=True)[self._keep - 1 :]:
            shutil.rmtree(path, ignore_errors=True)


def _event(report: training_pb2.TrainerReport) -> Event:
    values = [Summary.Value(tag=tag, simple_value=read(report)) for tag, read in _SCALARS.items()]
    return Event(wall_time=time.time(), step=report.updates, summary=Summary(value=values))


def _append(file: FileIO, event: Event) -> None:
    """Writes one record: length, its checksum, the event, its checksum."""
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    record = length + _checksum(length) + content + _checksum(content)
    if file.write(record) != len(record):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
