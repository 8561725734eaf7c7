"""Asks the sources of a client for addresses: one thread each, in both clients.

A name is looked up, and a learner's stream read, by blocking calls; in threads of their own they hold up
neither a caller nor an event loop. What they find is posted to whoever owns the Router.
"""

import random
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import grpc

from turnwise._channels import LEARNER, Connection, Source
from turnwise._directory import Directory
from turnwise._errors import ActorUnavailable, TurnwiseError, error_from_rpc
from turnwise._routing import Router

LOOK_EVERY_S = 30.0
"""Time between two look-ups of a name; higher: less traffic, new actors are found later."""
LOOK_AT_MOST_EVERY_S = 2.0
"""Shortest time between them, when actors are unavailable; higher: less traffic while one is dead."""
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.1, 2.0

Post = Callable[[Callable[[], None]], None]


class Discovery:
    """The sources of one client, asked until `stop`; without any it does nothing.

    Args:
        connection: Names the sources, and how to connect to them.
        router: Gets the addresses.
        clock: Monotonic seconds, the router's.
        post: Runs something where the router is; called from other threads. RuntimeError: that has ended.
    """

    def __init__(
        self, connection: Connection, router: Router, clock: Callable[[], float], post: Post
    ) -> None:
        directory = Directory(connection, router, clock)
        self._watches = [
            (_LearnerWatch if source.kind == LEARNER else _NameWatch)(source, connection, directory, post)
            for source in connection.sources
        ]
        router.on_trouble = self._look_again

    def start(self) -> None:
        """Begins to ask."""
        for watch in self._watches:
            threading.Thread(target=watch.run, name="turnwise-discovery", daemon=True).start()

    def stop(self) -> None:
        """Asks no more; does not wait for an answer that is due."""
        for watch in self._watches:
            watch.stop()

    def _look_again(self) -> None:
        for watch in self._watches:
            watch.look_again()


class _Watch:
    """Asks one source, in a thread of its own."""

    def __init__(self, source: Source, connection: Connection, directory: Directory, post: Post) -> None:
        self._source = source
        self._connection = connection
        self._directory = directory
        self._post = post
        self._stopped = threading.Event()

    def run(self) -> None:
        """Asks until `stop`, or until nobody is there to be told."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends `run` soon."""
        self._stopped.set()

    def look_again(self) -> None:
        """An actor was found unavailable."""

    def _listed(self, addresses: Sequence[str], leaving: Sequence[str] = ()) -> None:
        self._tell(partial(self._directory.listed, self._source, addresses, leaving))

    def _failed(self, error: TurnwiseError) -> None:
        self._tell(partial(self._directory.failed, self._source, error))

    def _tell(self, news: Callable[[], None]) -> None:
        if self._stopped.is_set():
            return
        try:
            self._post(news)
        except RuntimeError:  # the event loop is closed
            self.stop()


class _NameWatch(_Watch):
    """Looks a name up, again every 30 s, and soon after an actor was found unavailable."""

    def __init__(self, source: Source, connection: Connection, directory: Directory, post: Post) -> None:
        super().__init__(source, connection, directory, post)
        self._wanted = threading.Event()

    def stop(self) -> None:
        super().stop()
        self._wanted.set()

    def look_again(self) -> None:
        self._wanted.set()

    def run(self) -> None:
        host, _, port = self._source.target.rpartition(":")
        while not self._stopped.is_set():
            self._wanted.clear()
            wait_s = LOOK_EVERY_S
            try:
                self._listed(look_up(host.strip("[]"), int(port)))
            except OSError as error:
                self._failed(ActorUnavailable(f"the look-up failed: {error}"))
                wait_s = LOOK_AT_MOST_EVERY_S
            if not self._stopped.wait(LOOK_AT_MOST_EVERY_S):
                self._wanted.wait(wait_s - LOOK_AT_MOST_EVERY_S)


class _LearnerWatch(_Watch):
    """Reads the learner's list, and begins anew whenever its stream ends."""

    def __init__(self, source: Source, connection: Connection, directory: Directory, post: Post) -> None:
        super().__init__(source, connection, directory, post)
        self._channel = connection.channel(source.target)

    def stop(self) -> None:
        super().stop()
        self._channel.close()

    def run(self) -> None:
        # Only here: who names no learner does without the learner's messages.
        from turnwise.v1.training_pb2 import WatchActorsRequest
        from turnwise.v1.training_pb2_grpc import RegistryStub

        watch_actors: Any = RegistryStub(self._channel).WatchActors
        pause_s = _FIRST_PAUSE_S
        while not self._stopped.is_set():
            try:
                for listed in watch_actors(WatchActorsRequest(), metadata=self._connection.metadata()):
                    self._listed(listed.addresses, listed.draining)
                    pause_s = _FIRST_PAUSE_S
            except grpc.RpcError as error:
                self._failed(error_from_rpc(error))
            except TurnwiseError as error:
                self._failed(error)
            except ValueError:  # says gRPC of a channel that `stop` has closed
                if not self._stopped.is_set():
                    raise
            self._stopped.wait(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(_MAX_PAUSE_S, 2 * pause_s)


def look_up(host: str, port: int) -> list[str]:
    """`host:port` for each address of a name, in the order of the name server.

    Raises:
        OSError: There is none, or no name server answers.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except ValueError as error:  # a label that is too long, or empty
        raise OSError(f"{host} is no name") from error
    hosts = dict.fromkeys(str(address[0]) for *_, address in found)
    return [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts]
