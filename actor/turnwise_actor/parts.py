"""Messages put together from parts that are serialized already.

Protocol buffers concatenate: a message followed by a field is the message with that field added
(https://protobuf.dev/programming-guides/encoding/#last-one-wins). A message that is given to another's
repeated field is copied, which takes forty times as long as serializing it.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import Message

_LENGTH_DELIMITED = 2


def with_parts(head: Message, field: int, parts: Iterable[Message]) -> bytes:
    """The head with the parts added to its repeated field of messages, serialized."""
    tag = _varint(field << 3 | _LENGTH_DELIMITED)
    content = [head.SerializeToString()]
    for part in parts:
        body = part.SerializeToString()
        content += (tag, _varint(len(body)), body)
    return b"".join(content)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
