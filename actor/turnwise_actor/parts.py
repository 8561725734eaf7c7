"""Messages put together from parts that are serialized already.

Protocol buffers concatenate: a message followed by a field is the message with that field added
(https://protobuf.dev/programming-guides/encoding/#last-one-wins). A message that is given to another's
repeated field is copied, which takes forty times as long as serializing it.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import Message

from turnwise_actor.compiled import compiled

_LENGTH_DELIMITED = 2


def with_parts(head: Message | bytes, field: int, parts: Iterable[bytes]) -> bytes:
    """The head, serialized, with serialized messages added to one of its fields of messages."""
    return b"".join(joining(head if isinstance(head, bytes) else head.SerializeToString(), field, parts))


def joining_here(head: bytes, field: int, parts: Iterable[bytes]) -> list[bytes]:
    """What has to be joined for it."""
    tag = varint(field << 3 | _LENGTH_DELIMITED)
    content = [head]
    for part in parts:
        content += (tag + varint(len(part)), part)
    return content


def varint(number: int) -> bytes:
    """A number from 0 as the wire has it."""
    if number <= 0x7F:
        return _SHORT[number]
    if number <= 0x3FFF:
        return bytes((number & 0x7F | 0x80, number >> 7))
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SHORT = [bytes([number]) for number in range(0x80)]

_COMPILED = compiled("parts")
joining = joining_here if _COMPILED is None else _COMPILED.joining
"""The same, compiled where it was built."""
