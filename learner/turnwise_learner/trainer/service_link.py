"""The trainer's end of the stream to the service: reports and versions out, commands in.

The stream may break at any time (the service was killed): training goes on from the journal, messages wait,
and the link connects again.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Iterator

import grpc

from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.access.client_access import ClientAccess
from turnwise_actor.access.server_access import AccessError

logger = logging.getLogger(__name__)

_RECONNECT_S = (0.2, 0.5, 1.0, 2.0)


class ServiceLink:
    """Keeps one Attach stream alive from a thread of its own.

    Args:
        address: host:port of the service's local door.
        access: What opens it.
        hello: First message; its `cause` is sent once, later streams are reconnects.
        wake: Set whenever the trainer's loop has something to look at.
    """

    def __init__(
        self, address: str, access: ClientAccess, hello: training_pb2.TrainerHello, wake: threading.Event
    ) -> None:
        self._address = address
        self._access = access
        self._hello = hello
        self._wake = wake
        self._commands: queue.SimpleQueue[training_pb2.TrainerCommand] = queue.SimpleQueue()
        self._outbox: queue.Queue[training_pb2.TrainerMessage] = queue.Queue(maxsize=1024)
        self._published: training_pb2.TrainerMessage | None = None
        self._waits_after: int | None = None
        """The position of which the service was told that the trainer waits there, until it answers."""
        self._welcomed = threading.Event()
        self._stopping = threading.Event()
        self._welcome = training_pb2.Welcome()
        self.refused = ""
        """Why the service will not have this trainer; empty: it will."""
        self._thread = threading.Thread(target=self._run, name="service-link", daemon=True)
        self._thread.start()

    def wait_for_welcome(self, timeout_s: float) -> training_pb2.Welcome:
        """The generation that the service journaled for this start, and what operators have ordered.

        Raises:
            TimeoutError: The service did not answer in time.
            ConnectionRefusedError: It refused this trainer; the message says why.
        """
        if not self._welcomed.wait(timeout_s):
            raise TimeoutError(
                f"the learner service at {self._address} did not answer within {timeout_s:g} s"
            )
        if self.refused:
            raise ConnectionRefusedError(self.refused)
        return self._welcome

    def commands(self) -> Iterator[training_pb2.TrainerCommand]:
        """Commands that have arrived; does not wait."""
        while True:
            try:
                yield self._commands.get_nowait()
            except queue.Empty:
                return

    def send(self, message: training_pb2.TrainerMessage) -> None:
        """Queues a message; the oldest gives way when the service has been away for long."""
        if message.HasField("published"):
            self._published = message
        while True:
            try:
                return self._outbox.put_nowait(message)
            except queue.Full:
                self._outbox.get_nowait()

    def await_growth(self, cursor: int) -> None:
        """Has the service set `wake`, once, when the journal is beyond `cursor`.

        A trainer that has work looks by itself: to be told of every commit took its loop off its core
        hundreds of times a second.
        """
        if cursor != self._waits_after:
            self._waits_after = cursor
            self.send(training_pb2.TrainerMessage(waits_after=cursor))

    def close(self, timeout_s: float = 5.0) -> None:
        """Sends what is queued, then ends the stream."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            try:
                with self._access.channel(self._address, _OPTIONS) as channel:
                    self._talk(training_pb2_grpc.TrainerStub(channel))
                attempt = 0
            except grpc.RpcError as error:
                if self._is_final(error):
                    return
                logger.info("the learner service is away: %s, %s", error.code(), error.details())
            except AccessError as error:
                logger.info("the learner service is away: %s", error)
            self._stopping.wait(_RECONNECT_S[min(attempt, len(_RECONNECT_S) - 1)])
            attempt += 1

    def _talk(self, stub: training_pb2_grpc.TrainerStub) -> None:
        ended = threading.Event()
        try:
            for command in stub.Attach(self._messages(ended), wait_for_ready=True):
                self._take(command)
        finally:
            ended.set()

    def _take(self, command: training_pb2.TrainerCommand) -> None:
        kind = command.WhichOneof("command")
        if kind == "welcome":
            self._hello.cause = ""
            self._hello.generation = command.welcome.generation
            if not self._welcomed.is_set():
                self._welcome = command.welcome
                self._welcomed.set()
        elif kind == "journal_cursor":
            self._waits_after = None
        else:
            self._commands.put(command)
        self._wake.set()

    def _messages(self, ended: threading.Event) -> Iterator[training_pb2.TrainerMessage]:
        yield training_pb2.TrainerMessage(hello=self._hello)
        if self._published is not None:
            # It may have been lost with the stream before; told twice is harmless.
            yield self._published
        if (waits_after := self._waits_after) is not None:
            yield training_pb2.TrainerMessage(waits_after=waits_after)
        while not ended.is_set():
            try:
                yield self._outbox.get(timeout=0.1)
            except queue.Empty:
                if self._stopping.is_set():
                    return

    def _is_final(self, error: grpc.RpcError) -> bool:
        if error.code() not in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT):
            return False
        self.refused = error.details() or str(error.code())
        self._welcomed.set()
        self._wake.set()
        return True


_OPTIONS = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000)]


def hello(journal_id: str, resumed: bool) -> training_pb2.TrainerHello:
    """The first message of a trainer that starts."""
    return training_pb2.TrainerHello(
        pid=os.getpid(), cause="resume" if resumed else "start", journal_id=journal_id
    )
