"""Either end of an HTTP/2 connection with anything on the wire: what was sent arrives, come what may."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pytest

from tests.actor.raw_http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    frames,
    greeting,
    head,
    message,
    messages,
)
from tests.fuzz.wild import Wild, inputs
from turnwise_actor.http2 import HTTP2

pytestmark = [
    pytest.mark.skipif(HTTP2 is None, reason="the HTTP/2 server is not compiled here"),
    pytest.mark.timeout(100_000),
]

LIMIT, WINDOW = 40_000, 1 << 16
STATUS = [(b"grpc-status", b"0")]


def new_session() -> Any:
    assert HTTP2 is not None
    return HTTP2.Session(HTTP2.Call, LIMIT, 100, WINDOW)


def sizes(wild: Wild) -> list[int]:
    """Of the messages of a call."""
    return [
        wild.random.choice((0, 1, 5, 100, 16_379, 16_384, 20_000, LIMIT))
        for _ in range(wild.random.randrange(6))
    ]


def cut(wild: Wild, content: bytes, most: int) -> list[bytes]:
    """The same in pieces."""
    pieces = []
    while content:
        size = wild.random.choice((1, 4, 5, 6, 100, most, wild.random.randint(1, most)))
        pieces.append(content[:size])
        content = content[size:]
    return pieces


def as_parts(wild: Wild, content: bytes) -> bytes | list[bytes]:
    return content if wild.chance(0.5) else cut(wild, content, max(len(content) // 2, 1))


def all_sent(session: Any) -> bytes:
    sent = b""
    while part := session.send():
        sent += part
    return sent


class Exchange:
    """One call of a client that keeps to its window, and a servicer that echoes when it likes to."""

    def __init__(self, wild: Wild) -> None:
        self._wild = wild
        self._session = new_session()
        self._calls: list[Any] = []
        self.window = WINDOW
        self.sent = self.replies = b""
        self.got: list[bytes] = []

    def send(self, content: bytes) -> None:
        """Sends bytes in pieces; some of what has come is answered in between."""
        for piece in cut(self._wild, content, 70_000):
            self.sent += piece
            self._session.receive(piece)
            self._calls += [call for call in self._session.news() if call not in self._calls]
            self.answer(self._wild.random.choice((0, 0, 1, 9)))

    def send_data(self, payload: bytes, flags: int = 0) -> None:
        """Sends a frame when the window allows it: once all has been taken it does."""
        if len(payload) > self.window:
            self.answer(9)
            assert len(payload) <= self.window
        self.window -= len(payload)
        self.send(frame(DATA, flags, 1, payload))

    def answer(self, most: int) -> None:
        """Takes and echoes up to so many messages."""
        for call in self._calls:
            taken = call.take_some(most) if self._wild.chance(0.5) or not call.unread else [call.take()]
            while most == 9 and call.unread:
                taken.append(call.take())
            self.got += taken
            call.send_all([as_parts(self._wild, each) for each in taken])
        replies = all_sent(self._session)
        self.replies += replies
        self.window += sum(
            int.from_bytes(payload, "big")
            for kind, _, stream, payload in frames(replies)
            if (kind, stream) == (WINDOW_UPDATE, 1)
        )

    def finish(self) -> None:
        self.answer(9)
        (call,) = self._calls
        assert call.ended
        assert call.fault is None
        call.finish(STATUS)
        self.answer(0)
        assert call.closed
        assert not self._session.calls


def test_messages_arrive_however_they_are_cut_and_taken() -> None:
    def draw(wild: Wild) -> bytes:
        given = [wild.random.randbytes(size) for size in sizes(wild)]
        exchange = Exchange(wild)
        exchange.send(greeting() + frame(HEADERS, END_HEADERS, 1, head("/a/b")))
        for piece in cut(wild, b"".join(map(message, given)), 16_384):
            exchange.send_data(piece)
        exchange.send_data(b"", END_STREAM)
        exchange.finish()
        assert exchange.got == given
        assert messages(exchange.replies) == given
        assert GOAWAY not in {kind for kind, *_ in frames(exchange.replies)}
        return exchange.sent

    for _ in inputs("http2 messages", draw):
        pass


def test_a_wild_connection_does_no_harm() -> None:
    """Damaged frames, and calls that are answered, left and ended at any time."""
    over = 0

    def draw(wild: Wild) -> bytes:
        nonlocal over
        session, calls, sent = new_session(), list[Any](), b""
        for part in [greeting(), *(wild_frame(wild) for _ in range(wild.random.randrange(40)))]:
            content = wild.damaged(part) if wild.chance(0.05) else part
            sent += content
            try:
                for piece in cut(wild, content, 5_000) if wild.chance(0.2) else [content]:
                    session.receive(piece)
            except HTTP2.ConnectionError:  # type: ignore[union-attr]
                break
            calls += [call for call in session.news() if call not in calls]
            for call in calls:
                answer_wildly(wild, call)
            if wild.chance(0.9):
                list(frames(session.send()))
            if wild.chance(0.01):
                session.announce_end()
            if session.over or wild.chance(0.005):
                break
        over += session.over
        session.close()
        assert all(call.closed for call in calls)
        for call in calls:
            answer_wildly(wild, call)
        assert session.send() == b""
        session.receive(b"too late")
        return sent

    for _ in inputs("http2 wild", draw):
        pass
    assert over


def wild_frame(wild: Wild) -> bytes:
    stream = wild.random.choice((1, 1, 3, 5, 7, 0, 2))
    content = wild.random.choice(
        (message(b"hello"), message(bytes(20_000))[:16_384], b"\0\0\0\0", wild.binary(), b"")
    )
    flags = wild.random.choice((0, 0, END_STREAM))
    return wild.one_of(
        lambda: frame(HEADERS, END_HEADERS | flags, stream, head(f"/{wild.random.choice('ab')}/c")),
        lambda: frame(HEADERS, END_HEADERS | flags, stream, head("/a/b", x="y" * wild.integer(0, 126))),
        lambda: frame(DATA, flags, stream, content),
        lambda: frame(DATA, flags, stream, content),
        lambda: frame(RST_STREAM, 0, stream, wild.integer(0, 13).to_bytes(4, "big")),
        lambda: frame(PING, 0, 0, bytes(8)),
        lambda: frame(SETTINGS, wild.random.choice((0, ACK)), 0, b""),
        lambda: frame(SETTINGS, 0, 0, b"\0\4" + wild.integer(0, 2**31 - 1).to_bytes(4, "big")),
        lambda: frame(WINDOW_UPDATE, 0, stream, wild.integer(1, 2**31 - 1).to_bytes(4, "big")),
        lambda: frame(GOAWAY, 0, 0, bytes(8)),
        lambda: wild.random.randbytes(wild.random.randint(1, 30)),
    )


def answer_wildly(wild: Wild, call: Any) -> None:
    """What a servicer may do, and does too late."""
    do: Sequence[Any] = (
        lambda: call.unread and call.take(),
        lambda: call.take_some(3),
        lambda: call.send_all([b"", b"hello", [b"in ", b"", b"parts"]]),
        lambda: call.send_all([bytes(100_000)]),
        lambda: call.tell_when_sent(wild.random.choice((0, 100, 50_000))),
        lambda: call.finish(STATUS),
        lambda: call.refuse(b"405"),
    )
    if wild.chance(0.5):
        wild.random.choice(do)()


HEAD = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"localhost"),
    (b":path", b"/a/b"),
    (b"te", b"trailers"),
]


def new_client() -> tuple[Any, Any]:
    """A session and the call that it has begun."""
    assert HTTP2 is not None
    session, call = HTTP2.Session(None, LIMIT, 0, WINDOW), HTTP2.Call()
    session.begin(call, HEAD)
    return session, call


def test_our_client_and_our_server_understand_each_other() -> None:
    def draw(wild: Wild) -> bytes:
        (client, asking), server = new_client(), new_session()
        to_send = [wild.random.randbytes(size) for _ in range(3) for size in sizes(wild)]
        given, came, back = list(to_send), list[bytes](), list[bytes]()
        answering: Any = None
        carried = b""
        while len(back) < len(given):
            for _ in range(wild.random.randrange(3)):
                if to_send:
                    asking.send_all([as_parts(wild, to_send.pop(0))])
            for sender, receiver in ((client, server), (server, client)):
                if content := all_sent(sender) if wild.chance(0.5) else sender.send():
                    carried += content
                    for piece in cut(wild, content, 70_000):
                        receiver.receive(piece)
            answering = next(iter(server.news()), answering)
            if answering is not None and answering.unread:
                echoed = answering.take_some(wild.random.randint(1, 4))
                came += echoed
                answering.send_all([as_parts(wild, each) for each in echoed])
            client.news()
            if asking.unread:
                back.append(asking.take())
        assert came == back == given
        if answering is not None:
            asking.finish([])
            server.receive(all_sent(client))
            assert answering.ended
            answering.finish(STATUS)
            client.receive(all_sent(server))
            assert asking.closed
            assert asking.metadata[-1:] == STATUS
        return carried

    for _ in inputs("http2 client", draw):
        pass


def test_a_wild_server_does_no_harm_to_a_client() -> None:
    over = 0

    def draw(wild: Wild) -> bytes:
        nonlocal over
        (session, call), sent = new_client(), b""
        session.send()
        greetings = (frame(SETTINGS), frame(SETTINGS, ACK), frame(HEADERS, END_HEADERS, 1, b"\x88"))
        for part in [*greetings, *(wild_frame(wild) for _ in range(wild.random.randrange(40)))]:
            content = wild.damaged(part) if wild.chance(0.05) else part
            sent += content
            try:
                for piece in cut(wild, content, 5_000) if wild.chance(0.2) else [content]:
                    session.receive(piece)
                session.news()
                answer_wildly(wild, call)
                list(frames(session.send()))
            except HTTP2.ConnectionError:  # type: ignore[union-attr]
                break
            if session.over:
                break
        over += bool(session.over or call.closed)
        session.close()
        assert call.closed
        return sent

    for _ in inputs("http2 wild server", draw):
        pass
    assert over


def test_what_has_been_dealt_with_is_let_go_although_there_is_always_more() -> None:
    session = new_session()
    session.receive(greeting() + frame(HEADERS, END_HEADERS, 1, head("/a/b")))
    (call,) = session.news()
    session.receive(frame(DATA, 0, 1, message(b"the one that is always left")))
    taken, sent = [], [bytes(2000 + number) for number in range(300)]
    for content in sent:
        session.receive(frame(DATA, 0, 1, message(bytes(100))))
        taken.append(call.take())
        call.send_all([content])
        if call.unsent > 2 * LIMIT:
            session.send()
    assert call.unread
    assert call.unsent
    nobody_elses, *held = (
        max(sys.getrefcount(content) for content in contents[:100])
        for contents in ([bytes(1000)], taken, sent)
    )
    assert held == [nobody_elses] * 2


def test_what_is_no_message_is_refused_where_it_stands() -> None:
    session = new_session()
    session.receive(greeting() + frame(HEADERS, END_HEADERS, 1, head("/a/b")))
    (call,) = session.news()
    with pytest.raises(TypeError):
        call.send_all(["text"])
    with pytest.raises(TypeError):
        call.send_all([[b"bytes", "text"]])
    with pytest.raises(IndexError):
        call.take()
    with pytest.raises(ValueError, match="trailers"):
        call.finish(STATUS * 40)
    with pytest.raises(TypeError):
        session.receive("text")
    client, asking = new_client()
    with pytest.raises(ValueError, match="begun already"):
        client.begin(asking, HEAD)
    with pytest.raises(ValueError, match="headers"):
        client.begin(HTTP2.Call(), HEAD * 9)  # type: ignore[union-attr]
