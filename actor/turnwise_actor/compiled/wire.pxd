# cython: language_level=3
"""Reads and writes what Protocol buffers put on the wire (https://protobuf.dev/programming-guides/encoding).

Every read tells whether it went well; none goes beyond `end`. All our fields have numbers below 16, so that a
tag is one byte: number << 3 | wire type.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5


cdef struct Reader:
    const uint8_t* at
    const uint8_t* end


cdef struct Span:
    const uint8_t* at
    Py_ssize_t size


cdef inline bint read_varint(Reader* reader, uint64_t* value) noexcept nogil:
    """A number in its shortest form."""
    cdef int shift = 0
    cdef uint8_t byte
    value[0] = 0
    while reader.at < reader.end and shift < 64:
        byte = reader.at[0]
        reader.at += 1
        if shift == 63 and byte > 1:
            return False
        value[0] |= <uint64_t> (byte & 0x7F) << shift
        if byte < 0x80:
            return byte != 0 or shift == 0
        shift += 7
    return False


cdef inline bint read_span(Reader* reader, Span* span) noexcept nogil:
    """The bytes of a length-delimited field."""
    cdef uint64_t size
    if not read_varint(reader, &size) or size > <uint64_t> (reader.end - reader.at):
        return False
    span.at = reader.at
    span.size = <Py_ssize_t> size
    reader.at += size
    return True


cdef inline bint read_fixed64(Reader* reader, uint64_t* value) noexcept nogil:
    if reader.end - reader.at < 8:
        return False
    memcpy(value, reader.at, 8)
    reader.at += 8
    return True


cdef inline bint skip(Reader* reader, int wire_type) noexcept nogil:
    """Passes over a field that is known to the reader's caller."""
    cdef uint64_t number
    cdef Span span
    if wire_type == VARINT:
        return read_varint(reader, &number)
    if wire_type == BYTES:
        return read_span(reader, &span)
    return wire_type == FIXED64 and read_fixed64(reader, &number)


cdef inline Reader inside(Span span) noexcept nogil:
    return Reader(span.at, span.at + span.size)


cdef inline Py_ssize_t varint_size(uint64_t value) noexcept nogil:
    cdef Py_ssize_t size = 1
    while value > 0x7F:
        value >>= 7
        size += 1
    return size


cdef inline Py_ssize_t field_size(Py_ssize_t size) noexcept nogil:
    """Of a length-delimited field of so many bytes."""
    return 1 + varint_size(size) + size


cdef inline Py_ssize_t text_size(Py_ssize_t size) noexcept nogil:
    """The same; none where there are none, as in proto3."""
    return field_size(size) if size else 0


cdef inline Py_ssize_t number_size(uint64_t value) noexcept nogil:
    return 1 + varint_size(value) if value else 0


cdef inline uint8_t* put_varint(uint8_t* to, uint64_t value) noexcept nogil:
    while value > 0x7F:
        to[0] = <uint8_t> (value & 0x7F | 0x80)
        to += 1
        value >>= 7
    to[0] = <uint8_t> value
    return to + 1


cdef inline uint8_t* put_head(uint8_t* to, int number, Py_ssize_t size) noexcept nogil:
    """Of a length-delimited field."""
    to[0] = <uint8_t> (number << 3 | BYTES)
    return put_varint(to + 1, size)


cdef inline uint8_t* put_raw(uint8_t* to, const void* content, Py_ssize_t size) noexcept nogil:
    if size:  # C forbids to copy nothing from nowhere
        memcpy(to, content, size)
    return to + size


cdef inline uint8_t* put_field(uint8_t* to, int number, const void* content, Py_ssize_t size) noexcept nogil:
    return put_raw(put_head(to, number, size), content, size)


cdef inline uint8_t* put_text(uint8_t* to, int number, const void* content, Py_ssize_t size) noexcept nogil:
    return put_field(to, number, content, size) if size else to


cdef inline uint8_t* put_number(uint8_t* to, int number, uint64_t value) noexcept nogil:
    if not value:
        return to
    to[0] = <uint8_t> (number << 3)
    return put_varint(to + 1, value)
