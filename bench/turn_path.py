"""What a turn costs an actor by itself: bytes of connections in, bytes out, in one process without sockets.

HTTP/2, conversations, tokens, the network and the noting of facts are the product's; facts are acknowledged
four rounds late, so that each token carries some. Clients are frames put together here, outside the time that
is taken. Nothing is compared: it tells where to look, and whether a change was one. A quarter of a minute.
"""

import argparse
import asyncio
import base64
import gc
import json
import secrets
import statistics
import struct
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any, cast

from loads import Session
from report import Report, say
from turns import write_domain
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import training_pb2
from turnwise.v1.dialogue_pb2_grpc import add_DialogueServicer_to_server
from turnwise_actor import event_loop
from turnwise_actor.access.client_access import Link
from turnwise_actor.access.unreadable import UnreadableRequests
from turnwise_actor.config import StreamConfig, TokenConfig, UplinkConfig
from turnwise_actor.dialogues import Dialogues
from turnwise_actor.http2 import HTTP2
from turnwise_actor.http2.connection import Connection
from turnwise_actor.http2.server import Http2Server
from turnwise_actor.policy import Domain, initial_policy
from turnwise_actor.requests import CONVERSE, READERS
from turnwise_actor.servicer import ActorServicer
from turnwise_actor.spool import Spool
from turnwise_actor.tokens import KeyRing, Tokens
from turnwise_actor.uplink import Uplink
from turnwise_actor.weights import Policies

SHAPES = ((8, 8, False), (8, 2, False), (8, 1, False), (1, 1, False), (1, 28, True))
"""Connections, requests of each in a round, and whether those are one message."""
TURNS = 20_000
"""Of a shape, about."""
WARM_UP, LATE = 30, 4
"""Rounds."""
_DATA, _HEADERS, _SETTINGS, _WINDOW_UPDATE, _END_HEADERS, _ACK = 0, 1, 4, 8, 4, 1
_FRAME_BYTES = 16_384


class NoDisk:
    """A spool that is never needed."""

    full = False
    size_bytes = 0


class Wire:
    """Where a socket would be."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def get_extra_info(self, name: str) -> Any:
        """Of no socket."""
        return ("127.0.0.1", 1) if name == "peername" else None

    def write(self, content: bytes) -> None:
        """To the client."""
        self.sent.append(content)

    def abort(self) -> None:
        """Nobody does."""
        raise ConnectionAbortedError

    def is_closing(self) -> bool:
        """Never."""
        return False


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One of HTTP/2's (RFC 9113)."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def greeting() -> bytes:
    """A client's first bytes, with which it opens a conversation and takes all that comes."""
    fields = {":method": "POST", ":scheme": "http", ":authority": "bench", ":path": CONVERSE}
    fields["content-type"] = "application/grpc"
    block = b"".join(
        b"\0" + b"".join(bytes((len(part),)) + part.encode() for part in field) for field in fields.items()
    )
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(
        (
            frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 2**31 - 1)),
            frame(_SETTINGS, _ACK, 0, b""),
            frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1 - 65_535)),
            frame(_HEADERS, _END_HEADERS, 1, block),
        )
    )


class Client:
    """One connection's dialogues."""

    def __init__(self, server: Http2Server, sessions: list[Session], together: bool) -> None:
        self._sessions, self._together = sessions, together
        self.wire = Wire()
        self.connection = Connection(server, asyncio.get_running_loop())
        self.connection.connection_made(self.wire)
        self.connection.data_received(greeting())

    def requests(self) -> bytes:
        """The next turn of each."""
        asked = [
            pb.ConverseRequest(correlation_id=number, act=session.request())
            for number, session in enumerate(self._sessions, 1)
        ]
        if self._together:
            asked[0].also.extend(asked[1:])
            asked = asked[:1]
        contents = [request.SerializeToString() for request in asked]
        sent = b"".join(b"\0" + struct.pack(">I", len(content)) + content for content in contents)
        pieces = [sent[at : at + _FRAME_BYTES] for at in range(0, len(sent), _FRAME_BYTES)]
        return b"".join(frame(_DATA, 0, 1, piece) for piece in pieces)

    def take(self) -> None:
        """Reads the replies, each with the token for the turn after it."""
        received, content = b"".join(self.wire.sent), b""
        self.wire.sent.clear()
        while received:
            size = int.from_bytes(received[:3], "big")
            content += received[9 : 9 + size] if received[3] == _DATA else b""
            received = received[9 + size :]
        while content:
            size = int.from_bytes(content[1:5], "big")
            reply = pb.ConverseReply.FromString(content[5 : 5 + size])
            for part in (reply, *reply.also):
                self._sessions[part.correlation_id - 1].token = part.turn.token
            content = content[5 + size :]


class Actor:
    """Its parts, without sockets and learner."""

    def __init__(self, folder: Path) -> None:
        domain = Domain.load(write_domain(folder))
        secret = base64.b64encode(secrets.token_bytes(32)).decode()
        (folder / "keys.json").write_text(json.dumps({"active": "ab12cd34", "keys": {"ab12cd34": secret}}))
        policies = Policies(domain)
        policies.install(initial_policy(domain))
        link, spool = cast(Link, None), cast(Spool, NoDisk())
        self.uplink = Uplink(link, spool, UplinkConfig(), training_pb2.ActorReport, 1)
        tokens = Tokens(KeyRing(folder / "keys.json", domain.name), domain.name)
        self.dialogues = Dialogues(domain, tokens, policies, self.uplink, TokenConfig())
        self.server = Http2Server((UnreadableRequests(READERS),), 4 << 20)
        add_DialogueServicer_to_server(ActorServicer(self.dialogues, StreamConfig()), self.server)

    async def session(self) -> Session:
        """A dialogue that has just begun."""
        name = f"bench-{secrets.token_hex(8)}"
        return Session((await self.dialogues.start(pb.StartDialogueRequest(dialogue_id=name))).token)


async def measure(folder: Path, connections: int, requests: int, together: bool) -> float:
    """Median microseconds a turn."""
    actor = Actor(folder)
    clients = [
        Client(actor.server, [await actor.session() for _ in range(requests)], together)
        for _ in range(connections)
    ]
    await asyncio.sleep(0.01)
    waiting: deque[list[str]] = deque()
    costs: list[float] = []
    each = connections * requests
    gc.collect()
    for number in range(WARM_UP + TURNS // each):
        sent = [client.requests() for client in clients]
        for client in clients:
            client.wire.sent.clear()
        answered = actor.dialogues.counters.turns + each
        began = time.perf_counter()
        for client, content in zip(clients, sent, strict=True):
            client.connection.data_received(content)
        while actor.dialogues.counters.turns < answered or not all(client.wire.sent for client in clients):
            await asyncio.sleep(0)
        costs.append(1e6 * (time.perf_counter() - began) / each)
        await asyncio.sleep(0)
        for client in clients:
            client.take()
        waiting.append([fact.key for fact in actor.uplink._next_live()])
        if len(waiting) > LATE:
            actor.uplink._acknowledge(waiting.popleft(), number)
    for client in clients:
        client.connection.connection_lost(None)
    return statistics.median(costs[WARM_UP:])


def main() -> int:
    """0; 1 where there is nothing to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the same")
    parser.parse_args()
    if HTTP2 is None:
        say("the HTTP/2 server was not compiled here")
        return 1
    figures = {}
    for connections, requests, together in SHAPES:
        name = f"{connections} x {requests}{' together' if together else ''}"
        with tempfile.TemporaryDirectory(prefix="turnwise-turn-path-") as folder:
            work = measure(Path(folder), connections, requests, together)
            figures[name] = event_loop.run(work)
        say(f"{name}: {figures[name]:.1f} us a turn")
    print(Report("turn_path", figures={"us_per_turn": figures}).line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
