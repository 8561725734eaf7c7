"""Metadata, statuses and timeouts as gRPC writes them in HTTP/2 headers.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from urllib.parse import quote_from_bytes

import grpc

Value = str | bytes
Metadata = tuple[tuple[str, Value], ...]
Fields = list[tuple[bytes, bytes]]

_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MOST_DIGITS = 8
# All that is printable, but the percent sign.
_PLAIN = bytes(code for code in range(0x20, 0x7F) if code != 0x25).decode()


def read_timeout(value: bytes) -> float:
    """Seconds. Raises ValueError: it is no timeout."""
    digits, unit = value[:-1], value[-1:]
    if unit not in _UNITS_S or not digits.isdigit() or len(digits) > _MOST_DIGITS:
        raise ValueError(
            f"grpc-timeout: got {value[:20]!r}; wanted up to 8 digits and one of H, M, S, m, u, n"
        )
    return int(digits) * _UNITS_S[unit]


def read_metadata(fields: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """Values are text, or bytes where a name ends with `-bin`. Raises ValueError: such a one is no base64."""
    return tuple(_read(name.decode("latin-1"), value) for name, value in fields)


def _read(name: str, value: bytes) -> tuple[str, Value]:
    if not name.endswith("-bin"):
        return name, value.decode("latin-1")
    try:
        return name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name}: got {value[:20]!r}; wanted base64") from error


def write_metadata(metadata: Iterable[tuple[str, Value]]) -> Fields:
    """The other way."""
    return [(name.encode("ascii"), _written(name, value)) for name, value in metadata]


def _written(name: str, value: Value) -> bytes:
    if name.endswith("-bin"):
        return base64.b64encode(value if isinstance(value, bytes) else value.encode()).rstrip(b"=")
    return value if isinstance(value, bytes) else value.encode("latin-1", "replace")


_OK: Fields = [(b"grpc-status", b"0")]


def write_status(code: grpc.StatusCode, message: str, metadata: Iterable[tuple[str, Value]] = ()) -> Fields:
    """What ends a call."""
    if code is grpc.StatusCode.OK and not message and not metadata:
        return _OK
    number: int = code.value[0]
    fields = [(b"grpc-status", b"%d" % number)]
    if message:
        text = quote_from_bytes(message.encode("utf-8", "replace"), safe=_PLAIN)
        fields.append((b"grpc-message", text.encode("ascii")))
    return fields + write_metadata(metadata)
