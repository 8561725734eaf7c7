"""`python -m turnwise_deploy.keeper FOLDER`: keeps the process of one post running, whatever becomes of Ray.

It belongs to nobody: a Ray actor that renews the post's lease is what ties it to a cluster. When the lease is
not renewed for `outlive_s`, the cluster is taken to be gone for good, and the process is asked to end. Until
then an actor server goes on answering from its last policy while Ray, or the whole head, is replaced.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from turnwise_actor.signals import on_signals
from turnwise_deploy.child import Child
from turnwise_deploy.post import Order, Post, State

logger = logging.getLogger("turnwise.keeper")

_LOOK_EVERY_S = 0.1


def main() -> int:
    """Keeps the post until it is ordered to stop; 0, or the exit code of a process that ended otherwise."""
    parser = argparse.ArgumentParser(prog="python -m turnwise_deploy.keeper", description=__doc__)
    parser.add_argument("folder", type=Path, help="of the post")
    parser.add_argument("--detach", action="store_true", help="go on in the background, owned by nobody")
    options = parser.parse_args()
    if options.detach and os.fork():
        return 0
    if options.detach:
        os.setsid()
        _log_to(options.folder / "keeper.log")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    post = Post(options.folder)
    with post.kept() as mine:
        if not mine:
            return 0
        stop = threading.Event()
        with on_signals((signal.SIGTERM, signal.SIGINT), lambda _: stop.set()):
            return Keeper(post, stop).run()


class Keeper:
    """Follows the orders of a post that it holds. The main thread starts the process: see `leash`."""

    def __init__(self, post: Post, stop: threading.Event) -> None:
        self._post, self._stop = post, stop
        self._child: Child | None = None
        self._state = State(os.getpid())

    def run(self) -> int:
        """Returns the exit code of the process when all is over."""
        order = self._wait_for_order()
        while order is not None and not self._over(order):
            self._tend(order)
            self._stop.wait(_LOOK_EVERY_S)
            order = self._post.order()
        if self._child is not None:
            self._end(self._child, order.drain_s if order is not None else Order.drain_s)
        self._tell()
        return self._state.exit_code or 0

    def _wait_for_order(self) -> Order | None:
        order = self._post.order()
        while order is None and not self._stop.wait(_LOOK_EVERY_S):
            order = self._post.order()
        return order

    def _over(self, order: Order) -> bool:
        if self._stop.is_set() or order.stop:
            return True
        if (age := self._post.lease_age_s()) <= order.outlive_s:
            return False
        logger.warning("nobody has renewed the lease for %.0f s: %s ends", age, self._post.name)
        return True

    def _tend(self, order: Order) -> None:
        if self._child is None:
            self._child = Child(self._post.name, order.arguments, Path(order.log))
        child = self._child
        if child.arguments != order.arguments:
            logger.info("%s gets other arguments", child.name)
            child.arguments = order.arguments
            child.renew(order.drain_s)
        if (code := child.poll()) is not None:
            logger.warning("%s has ended with %d; see %s", child.name, code, child.log)
            self._state = replace(self._state, pid=None, exit_code=code)
        elif child.due:
            child.start()
            logger.info("%s runs as process %d", child.name, child.pid)
            self._state = replace(self._state, pid=child.pid, starts=self._state.starts + 1)
        else:
            return
        self._tell()

    def _end(self, child: Child, drain_s: float) -> None:
        deadline = time.monotonic() + drain_s
        child.terminate()
        while child.pid is not None:
            if time.monotonic() > deadline:
                logger.error("%s has not ended within %.0f s and is killed", child.name, drain_s)
                child.kill()
            child.poll()
            time.sleep(_LOOK_EVERY_S / 2)
        logger.info("%s has ended with %s", child.name, child.exit_code)
        self._state = replace(self._state, pid=None, exit_code=child.exit_code)

    def _tell(self) -> None:
        try:
            self._post.tell(self._state)
        except OSError as error:  # a full disk: the process matters more
            logger.error("the state of %s cannot be written: %s", self._post.name, error)


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())


if __name__ == "__main__":
    sys.exit(main())
