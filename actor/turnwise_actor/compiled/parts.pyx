# cython: language_level=3
"""What `turnwise_actor.parts` does for every turn and every fact, compiled."""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t

from turnwise_actor.compiled.wire cimport put_varint


def joining(bytes head not None, unsigned int field, parts):
    """What has to be joined for a message with serialized messages added to one of its fields."""
    cdef list content = [head]
    cdef uint8_t prefix[20]
    cdef uint8_t* after_tag = put_varint(prefix, field << 3 | 2)
    cdef bytes part
    for each in parts:
        part = <bytes?> each
        content.append(
            PyBytes_FromStringAndSize(
                <const char*> prefix, put_varint(after_tag, PyBytes_GET_SIZE(part)) - prefix
            )
        )
        content.append(part)
    return content
