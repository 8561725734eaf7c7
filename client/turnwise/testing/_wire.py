"""The wire of a fake actor: a gRPC servicer, streams and their troubles included."""

import heapq
import math
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

import grpc

from turnwise._errors import DETAILS_KEY
from turnwise.testing._checks import Refusal
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import dialogue_pb2_grpc

_REPLY_FIELD = {pb.Turn: "turn", pb.Receipt: "receipt", pb.StartDialogueReply: "started"}
_LONG_S = 3600.0


class _FakeStream:
    """What one Converse stream is to say: (when, what); None: nothing more will come."""

    def __init__(self) -> None:
        self.outbox: SimpleQueue[tuple[float, pb.ConverseReply | Refusal | None]] = SimpleQueue()

    def replies(self) -> Iterator[pb.ConverseReply]:
        """Replies when they are due.

        Raises:
            Refusal: The stream is to break.
        """
        due: list[tuple[float, int, pb.ConverseReply]] = []
        order = count()
        closing = False
        while not closing or (due and due[0][0] < math.inf):
            wait_s = max(0.0, due[0][0] - time.monotonic()) if due else _LONG_S
            try:
                when, news = self.outbox.get(timeout=min(wait_s, _LONG_S))
            except Empty:
                if due and due[0][0] <= time.monotonic():
                    yield heapq.heappop(due)[2]
                continue
            if isinstance(news, Refusal):
                raise news
            if news is None:
                closing = True
            else:
                heapq.heappush(due, (when, next(order), news))


class Servicer(dialogue_pb2_grpc.DialogueServicer):
    """Answers with `answer`, as slowly and badly as its attributes say.

    Attributes:
        delay_s: Answers to what comes are held back so long.
        draining: New streams and unary calls are refused.
        stopping: Set: nobody waits any more.
    """

    def __init__(self, answer: Callable[[Any], Any], converse: bool) -> None:
        self.delay_s = 0.0
        self.draining = False
        self.stopping = threading.Event()
        self._answer = answer
        self._converse = converse
        self._streams: set[_FakeStream] = set()
        self._lock = threading.Lock()

    @property
    def streams(self) -> int:
        """How many streams are open."""
        with self._lock:
            return len(self._streams)

    def tell_streams(self, news: pb.ConverseReply | Refusal) -> None:
        """Says something on each stream, or breaks it."""
        with self._lock:
            for stream in self._streams:
                stream.outbox.put((time.monotonic(), news))

    def StartDialogue(self, request: pb.StartDialogueRequest, context: Any) -> pb.StartDialogueReply:
        """Unary."""
        reply: pb.StartDialogueReply = self._unary(request, context)
        return reply

    def Act(self, request: pb.ActRequest, context: Any) -> pb.Turn:
        """Unary."""
        reply: pb.Turn = self._unary(request, context)
        return reply

    def GiveFeedback(self, request: pb.FeedbackRequest, context: Any) -> pb.Receipt:
        """Unary."""
        reply: pb.Receipt = self._unary(request, context)
        return reply

    def EndDialogue(self, request: pb.EndRequest, context: Any) -> pb.Receipt:
        """Unary."""
        reply: pb.Receipt = self._unary(request, context)
        return reply

    def DescribeDomain(self, request: pb.DescribeDomainRequest, context: Any) -> pb.DomainDescription:
        """Unary."""
        reply: pb.DomainDescription = self._unary(request, context)
        return reply

    def Converse(self, request_iterator: Any, context: Any) -> Iterator[pb.ConverseReply]:
        """The stream; its requests are read in a thread of its own, so that a delay holds up no other."""
        if not self._converse:
            _abort(context, Refusal(grpc.StatusCode.UNIMPLEMENTED, "this fake has no streams"))
        self._refuse_draining(context)
        stream = _FakeStream()
        with self._lock:
            self._streams.add(stream)
        context.add_callback(lambda: stream.outbox.put((0.0, None)))
        reader = threading.Thread(target=self._read, args=(request_iterator, stream), name="fake-stream")
        reader.start()
        try:
            yield from stream.replies()
        except Refusal as refusal:
            _abort(context, refusal)
        finally:
            with self._lock:
                self._streams.discard(stream)

    def _read(self, requests: Iterator[pb.ConverseRequest], stream: _FakeStream) -> None:
        try:
            for message in requests:
                for request in (message, *message.also):
                    stream.outbox.put((time.monotonic() + self.delay_s, self._reply(request)))
        except grpc.RpcError:
            pass  # the client is gone, or the test has stopped this fake
        finally:
            stream.outbox.put((0.0, None))

    def _reply(self, message: pb.ConverseRequest) -> pb.ConverseReply:
        reply = pb.ConverseReply(correlation_id=message.correlation_id)
        kind = message.WhichOneof("request")
        try:
            if kind is None:
                wrong = [("request", "got none; wanted start, act, feedback or end")]
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid request", violations=wrong)
            answer = self._answer(getattr(message, kind))
        except Refusal as refusal:
            reply.status.CopyFrom(refusal.status)
        else:
            getattr(reply, _REPLY_FIELD[type(answer)]).CopyFrom(answer)
        return reply

    def _unary(self, request: Any, context: Any) -> Any:
        self._refuse_draining(context)
        try:
            answer = self._answer(request)
        except Refusal as refusal:
            _abort(context, refusal)
        remaining = context.time_remaining()
        self.stopping.wait(min(self.delay_s, _LONG_S if remaining is None else remaining))
        return answer

    def _refuse_draining(self, context: Any) -> None:
        if self.draining:
            _abort(context, Refusal(grpc.StatusCode.UNAVAILABLE, "this fake is draining", "DRAINING"))


def _abort(context: Any, refusal: Refusal) -> NoReturn:
    context.set_trailing_metadata(((DETAILS_KEY, refusal.status.SerializeToString()),))
    context.abort(refusal.code, refusal.status.message)
    raise AssertionError("abort always raises")
