"""Frames of HTTP/2 as they are on the wire (RFC 9113, RFC 7541), for clients that do as they like."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4
MAGIC = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GREETING_SIZES = (INITIAL_WINDOW_SIZE, 2**31 - 1)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def greeting() -> bytes:
    """What a client begins with; it takes all that it is sent."""
    wide = frame(WINDOW_UPDATE, payload=struct.pack(">I", 2**31 - 1 - 65_535))
    return MAGIC + frame(SETTINGS, payload=struct.pack(">HI", *GREETING_SIZES)) + frame(SETTINGS, ACK) + wide


def head(path: str, **others: str) -> bytes:
    """A header block of literals; `others` replace or add fields, `_` is `-`, empty ones are left out."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":authority": "localhost",
        ":path": path,
        "content-type": "application/grpc",
        **{name.replace("_", "-"): value for name, value in others.items()},
    }
    return b"".join(_literal(name.encode(), value.encode()) for name, value in fields.items() if value)


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    assert len(text) < 127
    return bytes((len(text),)) + text


def message(content: bytes, compressed: bool = False) -> bytes:
    """One of gRPC's."""
    return bytes((compressed,)) + struct.pack(">I", len(content)) + content


def frames(received: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of each that is whole."""
    at = 0
    while at + 9 <= len(received):
        size = int.from_bytes(received[at : at + 3], "big")
        kind, flags = received[at + 3], received[at + 4]
        stream = int.from_bytes(received[at + 5 : at + 9], "big")
        yield kind, flags, stream, received[at + 9 : at + 9 + size]
        at += 9 + size


def messages(received: bytes, stream: int = 1) -> list[bytes]:
    """Those of one call."""
    return list(_messages(b"".join(p for kind, _, of, p in frames(received) if (kind, of) == (DATA, stream))))


def _messages(content: bytes) -> Iterable[bytes]:
    while content:
        size = int.from_bytes(content[1:5], "big")
        yield content[5 : 5 + size]
        content = content[5 + size :]
