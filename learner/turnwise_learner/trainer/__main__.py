"""The trainer process: `python -m turnwise_learner.trainer`, started and supervised by the service."""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import fcntl
import gc
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from turnwise_actor.policy import Domain, DomainError
from turnwise_actor.signals import on_signals
from turnwise_learner.trainer.checkpoints import CheckpointError
from turnwise_learner.trainer.config import TrainerConfig

logger = logging.getLogger("turnwise.trainer")

_PR_SET_PDEATHSIG = 1
_LONGEST_RESTORE_S, _LONGEST_END_S = 600.0, 60.0
"""Beyond it the trainer writes its stacks to the log and ends: one that stands still keeps the next one out,
and when its service is gone there is nobody else to end it."""


def main(argv: list[str] | None = None) -> int:
    """Trains until SIGTERM, then saves a checkpoint. Exit code 0; 1: it could not start.

    SIGUSR2 has it write the stack of every thread to its log.
    """
    config = parse(argv)
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    faulthandler.register(signal.SIGUSR2)
    _die_with_parent(config.parent_pid)
    stop, wake = threading.Event(), threading.Event()

    def ask_to_stop(_: int) -> None:
        stop.set()
        wake.set()
        faulthandler.dump_traceback_later(_LONGEST_END_S, exit=True)

    try:
        domain = Domain.load(config.domain)
        with _only_one(config.data / "trainer.lock"):
            # Imported late: a bad domain is told at once, not after the seconds that torch and ray take.
            # A call that would need Ray after all fails, instead of starting one.
            os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
            import torch

            from turnwise_learner.trainer.ray_cluster import do_without_ray, start_ray
            from turnwise_learner.trainer.training import Training

            # One torch thread: at batches of 32 a second one costs more than it brings.
            torch.set_num_threads(1)
            if learners := int(domain.learning.get("num_learners", 0)):
                start_ray(learners)
            else:
                do_without_ray()
            faulthandler.dump_traceback_later(_LONGEST_RESTORE_S, exit=True)
            with on_signals((signal.SIGTERM, signal.SIGINT), ask_to_stop):
                training = Training(config, domain, stop, wake)
                # The start's objects stay for good, and looking for cycles among ten thousand dialogues at
                # Python's pace took a fifth of the time that facts take.
                gc.collect()
                gc.freeze()
                gc.set_threshold(50_000, 20, 20)
                faulthandler.cancel_dump_traceback_later()
                if stop.is_set():
                    ask_to_stop(signal.SIGTERM)  # what was cancelled may have been the end's
                training.run()
    except (DomainError, CheckpointError, ConnectionRefusedError, TimeoutError, OSError, ValueError) as error:
        # A bare ValueError may be RLlib's word on a setting, or a fault of ours: then its place is wanted.
        logger.error("%s", error, exc_info=type(error) is ValueError)
        return 1
    return 0


def parse(argv: list[str] | None = None) -> TrainerConfig:
    """The command line as a configuration."""
    parser = argparse.ArgumentParser(prog="python -m turnwise_learner.trainer", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data folder")
    parser.add_argument("--domain", type=Path, required=True, help="domain.yaml")
    parser.add_argument("--service", required=True, help="host:port of the learner service")
    parser.add_argument("--checkpoint-every-s", type=float, default=TrainerConfig.checkpoint_every_s)
    parser.add_argument("--checkpoint-every-turns", type=int, default=TrainerConfig.checkpoint_every_turns)
    parser.add_argument("--keep-checkpoints", type=int, default=TrainerConfig.keep_checkpoints)
    parser.add_argument(
        "--no-tensorboard", dest="tensorboard", action="store_false", help="write no TensorBoard event files"
    )
    parser.add_argument("--parent-pid", type=int, default=0, help="end when this process is gone")
    parser.add_argument("--log-level", default="info")
    return TrainerConfig(**vars(parser.parse_args(argv)))


def _die_with_parent(parent_pid: int) -> None:
    """A trainer must not outlive its service: SIGTERM when it dies, so that a checkpoint is saved."""
    if not parent_pid or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:
        sys.exit(0)


class _only_one:
    """One trainer a data folder: waits for the lock of one that is still saving its checkpoint."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def __enter__(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for the trainer before this one to end")
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


if __name__ == "__main__":
    sys.exit(main())
