# cython: language_level=3
"""One connection of gRPC, either end: HTTP/2 by nghttp2, gRPC's frames of messages here. Bytes in, bytes out.

Nothing here knows of sockets, methods or event loops. The protocol is that of gRPC over HTTP/2
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). What the other end sends is credited to it as
it is read: at once to the connection, to a call when none of its messages lies unread.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE, _PyBytes_Resize
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

cdef extern from "nghttp2/nghttp2.h":
    ctypedef struct nghttp2_session:
        pass
    ctypedef struct nghttp2_session_callbacks:
        pass
    ctypedef struct nghttp2_option:
        pass
    ctypedef struct nghttp2_nv:
        uint8_t* name
        uint8_t* value
        size_t namelen
        size_t valuelen
        uint8_t flags
    ctypedef struct nghttp2_settings_entry:
        int32_t settings_id
        uint32_t value
    ctypedef struct nghttp2_frame_hd:
        size_t length
        int32_t stream_id
        uint8_t type
        uint8_t flags
    ctypedef struct nghttp2_headers:
        int cat
    ctypedef union nghttp2_frame:
        nghttp2_frame_hd hd
        nghttp2_headers headers
    ctypedef union nghttp2_data_source:
        void* ptr
    ctypedef ssize_t (*nghttp2_data_source_read_callback)(
        nghttp2_session*, int32_t, uint8_t*, size_t, uint32_t*, nghttp2_data_source*, void*
    ) noexcept
    ctypedef struct nghttp2_data_provider:
        nghttp2_data_source source
        nghttp2_data_source_read_callback read_callback
    ctypedef int (*nghttp2_on_begin_headers_callback)(
        nghttp2_session*, const nghttp2_frame*, void*
    ) noexcept
    ctypedef int (*nghttp2_on_header_callback)(
        nghttp2_session*, const nghttp2_frame*, const uint8_t*, size_t, const uint8_t*, size_t, uint8_t, void*
    ) noexcept
    ctypedef int (*nghttp2_on_frame_callback)(nghttp2_session*, const nghttp2_frame*, void*) noexcept
    ctypedef int (*nghttp2_on_data_chunk_recv_callback)(
        nghttp2_session*, uint8_t, int32_t, const uint8_t*, size_t, void*
    ) noexcept
    ctypedef int (*nghttp2_send_data_callback)(
        nghttp2_session*, nghttp2_frame*, const uint8_t*, size_t, nghttp2_data_source*, void*
    ) noexcept
    ctypedef int (*nghttp2_on_stream_close_callback)(nghttp2_session*, int32_t, uint32_t, void*) noexcept

    int NGHTTP2_ERR_DEFERRED, NGHTTP2_ERR_CALLBACK_FAILURE, NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    int NGHTTP2_ERR_NOMEM
    int NGHTTP2_HEADERS, NGHTTP2_DATA, NGHTTP2_HCAT_REQUEST
    int NGHTTP2_FLAG_NONE, NGHTTP2_FLAG_END_STREAM
    int NGHTTP2_DATA_FLAG_EOF, NGHTTP2_DATA_FLAG_NO_COPY, NGHTTP2_DATA_FLAG_NO_END_STREAM
    int NGHTTP2_NO_ERROR
    int NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
    int NGHTTP2_SETTINGS_ENABLE_PUSH
    int NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES

    int nghttp2_session_callbacks_new(nghttp2_session_callbacks**)
    void nghttp2_session_callbacks_del(nghttp2_session_callbacks*)
    void nghttp2_session_callbacks_set_on_begin_headers_callback(
        nghttp2_session_callbacks*, nghttp2_on_begin_headers_callback)
    void nghttp2_session_callbacks_set_on_header_callback(
        nghttp2_session_callbacks*, nghttp2_on_header_callback)
    void nghttp2_session_callbacks_set_on_frame_recv_callback(
        nghttp2_session_callbacks*, nghttp2_on_frame_callback)
    void nghttp2_session_callbacks_set_on_frame_send_callback(
        nghttp2_session_callbacks*, nghttp2_on_frame_callback)
    void nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
        nghttp2_session_callbacks*, nghttp2_on_data_chunk_recv_callback)
    void nghttp2_session_callbacks_set_send_data_callback(
        nghttp2_session_callbacks*, nghttp2_send_data_callback)
    void nghttp2_session_callbacks_set_on_stream_close_callback(
        nghttp2_session_callbacks*, nghttp2_on_stream_close_callback)
    int nghttp2_option_new(nghttp2_option**)
    void nghttp2_option_del(nghttp2_option*)
    void nghttp2_option_set_no_auto_window_update(nghttp2_option*, int)
    void nghttp2_option_set_no_closed_streams(nghttp2_option*, int)
    int nghttp2_session_server_new2(
        nghttp2_session**, const nghttp2_session_callbacks*, void*, const nghttp2_option*)
    int nghttp2_session_client_new2(
        nghttp2_session**, const nghttp2_session_callbacks*, void*, const nghttp2_option*)
    void nghttp2_session_del(nghttp2_session*)
    int nghttp2_submit_settings(nghttp2_session*, uint8_t, const nghttp2_settings_entry*, size_t)
    int nghttp2_session_set_local_window_size(nghttp2_session*, uint8_t, int32_t, int32_t)
    ssize_t nghttp2_session_mem_recv(nghttp2_session*, const uint8_t*, size_t)
    ssize_t nghttp2_session_mem_send(nghttp2_session*, const uint8_t**)
    int nghttp2_session_want_read(nghttp2_session*)
    int nghttp2_session_want_write(nghttp2_session*)
    int nghttp2_session_consume_connection(nghttp2_session*, size_t)
    int nghttp2_session_consume_stream(nghttp2_session*, int32_t, size_t)
    int nghttp2_session_set_stream_user_data(nghttp2_session*, int32_t, void*)
    void* nghttp2_session_get_stream_user_data(nghttp2_session*, int32_t)
    int nghttp2_session_resume_data(nghttp2_session*, int32_t)
    int32_t nghttp2_submit_request(
        nghttp2_session*, const void*, const nghttp2_nv*, size_t, const nghttp2_data_provider*, void*)
    int nghttp2_submit_response(
        nghttp2_session*, int32_t, const nghttp2_nv*, size_t, const nghttp2_data_provider*)
    int nghttp2_submit_trailer(nghttp2_session*, int32_t, const nghttp2_nv*, size_t)
    int nghttp2_submit_rst_stream(nghttp2_session*, uint8_t, int32_t, uint32_t)
    int nghttp2_submit_shutdown_notice(nghttp2_session*)
    int nghttp2_session_terminate_session(nghttp2_session*, uint32_t)
    const char* nghttp2_strerror(int)

cdef enum:
    PREFIX = 5  # bytes before each message: whether it is compressed, and its size, big-endian
    MOST_FIELDS = 32  # in headers and trailers of ours
    SEND_BYTES = 64 * 1024  # about as much is sent at a time
    FRAME_HEAD = 9
    FRAME_BYTES = FRAME_HEAD + 16384
    MOST_KEPT = 64  # messages or pieces that have been dealt with, before they are let go
    RESOURCE_EXHAUSTED = 8
    INTERNAL = 13

cdef list _HEADERS = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
]


class ConnectionError(Exception):  # noqa: A001
    """The other end does not speak HTTP/2, or not as it should; the connection is of no more use."""


cdef class Call:
    """What one call is on the wire: what came, what is to go. To be derived from.

    `Session.news` names it once something has come of it: headers at first, then messages, the client's end,
    the end of all, or room for more to send.
    """

    cdef Session _session
    cdef readonly int32_t stream_id
    cdef readonly dict head
    """Pseudo headers, and those that gRPC defines; names and values in bytes."""
    cdef readonly list metadata
    """All others, as pairs of bytes, in order; of a call of ours the server's trailers, too."""
    cdef readonly bint ended
    """Whether the other end has ended its side."""
    cdef readonly bint closed
    """Whether nothing comes or goes any more."""
    cdef readonly bint compressed
    """Whether a message has come that is."""
    cdef readonly object fault
    """Code and message of what is wrong with the bytes that came; what follows is not looked at."""

    cdef bint _told
    cdef list _messages
    cdef Py_ssize_t _taken
    """Of these, from the front."""
    cdef Py_ssize_t _held
    """Bytes received and not credited to the other end."""
    cdef uint8_t _prefix[PREFIX]
    cdef Py_ssize_t _prefix_size
    cdef bytes _part
    """A message that has not all come, or the room for its beginning."""
    cdef Py_ssize_t _part_size
    """Bytes of it that have come."""
    cdef Py_ssize_t _wanted

    cdef list _pieces
    """Of what is to be sent, one after the other."""
    cdef Py_ssize_t _first
    """Of these that is not all written."""
    cdef Py_ssize_t _at
    """Bytes of it that are written."""
    cdef readonly Py_ssize_t unsent
    """Bytes of the pieces that are not written."""
    cdef Py_ssize_t _mark
    """Worth news when `unsent` falls to it; -1: not wanted."""
    cdef bint _headers_sent
    cdef bint _deferred
    cdef list _trailers

    def __cinit__(self):
        self.head, self.metadata = {}, []
        self._messages, self._pieces = [], []
        self._mark = -1

    cdef Py_ssize_t _unread(self) noexcept:
        return len(self._messages) - self._taken

    @property
    def unread(self):
        """Messages that have come and were not taken."""
        return self._unread()

    def take(self):
        """The next message, or (message,) if it is compressed; only while `unread`."""
        if self._unread() <= 0:
            raise IndexError("no message has come")
        message = self._messages[self._taken]
        self._took(self._taken + 1)
        return message

    def take_some(self, Py_ssize_t most):
        """As many of the messages that have come, each as `take` gives it."""
        cdef Py_ssize_t end = min(self._taken + most, len(self._messages))
        messages = self._messages[self._taken:end]
        self._took(end)
        return messages

    cdef int _took(self, Py_ssize_t end) except -1:
        """Lets go of messages, a few at a time."""
        self._taken = end
        if end == len(self._messages):
            self._messages = []
            self._taken = 0
            self._credit()
        elif end > MOST_KEPT:
            del self._messages[:end]
            self._taken = 0
        return 0

    cdef void _credit(self) noexcept:
        if self._held and not self.closed:
            nghttp2_session_consume_stream(self._session._session, self.stream_id, self._held)
        self._held = 0

    cdef int _receive(self, const uint8_t* at, Py_ssize_t size) except -1:
        """Cuts messages out of what came."""
        cdef Py_ssize_t count, most = self._session._max_message_bytes
        while size and self.fault is None:
            if self._prefix_size < PREFIX:
                count = min(PREFIX - self._prefix_size, size)
                memcpy(self._prefix + self._prefix_size, at, count)
                self._prefix_size += count
                at += count
                size -= count
                if self._prefix_size < PREFIX:
                    break
                self._wanted = (
                    <Py_ssize_t> self._prefix[1] << 24 | <Py_ssize_t> self._prefix[2] << 16
                    | <Py_ssize_t> self._prefix[3] << 8 | self._prefix[4]
                )
                if self._prefix[0] > 1:
                    self.fault = INTERNAL, f"a message begins with {self._prefix[0]}; wanted 0 or 1"
                    break
                if self._wanted > most:
                    told = f"a message of {self._wanted} bytes, compressed or not; at most {most} are taken"
                    self.fault = RESOURCE_EXHAUSTED, told
                    break
            if self._part is None and size >= self._wanted:
                self._came(PyBytes_FromStringAndSize(<const char*> at, self._wanted))
                at += self._wanted
                size -= self._wanted
                continue
            if not size:
                break
            count = min(self._wanted - self._part_size, size)
            self._keep(at, count)
            at += count
            size -= count
            if self._part_size == self._wanted:
                self._came(self._part)
                self._part, self._part_size = None, 0
        return 0

    cdef int _keep(self, const uint8_t* at, Py_ssize_t count) except -1:
        """Adds to a part, for which no more room is made than what may be sent unasked, or has come."""
        cdef Py_ssize_t room = 0 if self._part is None else PyBytes_GET_SIZE(self._part)
        cdef bytes part
        if self._part_size + count > room:
            room = min(self._wanted, max(self._session._window_bytes, 2 * (self._part_size + count)))
            part = PyBytes_FromStringAndSize(NULL, room)
            if self._part is not None:
                memcpy(PyBytes_AS_STRING(part), PyBytes_AS_STRING(self._part), self._part_size)
            self._part = part
        memcpy(PyBytes_AS_STRING(self._part) + self._part_size, at, count)
        self._part_size += count
        return 0

    cdef int _came(self, bytes message) except -1:
        if self._prefix[0]:
            self.compressed = True
            self._messages.append((message,))
        else:
            self._messages.append(message)
        self._prefix_size = 0
        return 0

    def send_all(self, list messages not None):
        """Sends messages when there is room for them. Nothing happens once the call is over.

        A message is bytes, or a list of its parts.
        """
        cdef Py_ssize_t size
        if self.closed or self._trailers is not None or not messages:
            return
        for message in messages:
            if type(message) is list:
                size = 0
                for part in <list> message:
                    size += PyBytes_GET_SIZE(<bytes?> part)
                self._pieces.append(_prefix(size))
                self._pieces += <list> message
            else:
                size = PyBytes_GET_SIZE(<bytes?> message)
                self._pieces.append(_prefix(size))
                self._pieces.append(message)
            self.unsent += PREFIX + size
        self._go_on()

    def tell_when_sent(self, Py_ssize_t mark):
        """Makes it news when no more than so many bytes are unsent."""
        self._mark = mark

    def finish(self, list trailers not None):
        """Ends our side after what was sent. `trailers`: pairs of bytes, a server's status among them; 32 at most."""
        if self.closed or self._trailers is not None:
            return
        if len(trailers) > MOST_FIELDS - len(_HEADERS):
            raise ValueError(f"{len(trailers)} trailers; at most {MOST_FIELDS - len(_HEADERS)}")
        self._trailers = trailers
        if self._headers_sent or self._pieces or self._session is None:
            self._go_on()
        else:
            self._headers_sent = True
            self._session._respond(self, [*_HEADERS, *trailers], False)

    def refuse(self, bytes status not None):
        """Answers what is no gRPC with a bare HTTP status."""
        if not self.closed and not self._headers_sent:
            self._headers_sent, self._trailers = True, []
            self._session._respond(self, [(b":status", status)], False)

    @property
    def finished(self):
        """Whether we have ended it."""
        return self._trailers is not None

    cdef int _go_on(self) except -1:
        if self._session is None:
            return 0  # what is to be sent waits for `Session.begin`
        if not self._headers_sent:
            self._headers_sent = True
            self._session._respond(self, _HEADERS, True)
        elif self._deferred:
            self._deferred = False
            nghttp2_session_resume_data(self._session._session, self.stream_id)
        return 0

    cdef int _write(self, uint8_t* to, Py_ssize_t size) except -1:
        """Writes so many bytes of the pieces; there are no fewer."""
        cdef Py_ssize_t count
        cdef bytes piece
        self.unsent -= size
        while size:
            piece = <bytes> self._pieces[self._first]
            count = min(PyBytes_GET_SIZE(piece) - self._at, size)
            memcpy(to, PyBytes_AS_STRING(piece) + self._at, count)
            to += count
            size -= count
            self._at += count
            if self._at == PyBytes_GET_SIZE(piece):
                self._at = 0
                self._first += 1
        if not self.unsent:
            self._pieces = []
            self._first = self._at = 0
        elif self._first > MOST_KEPT:
            del self._pieces[:self._first]
            self._first = 0
        if self._mark >= self.unsent:
            self._mark = -1
            self._session._tell(self)
        return 0


cdef bytes _prefix(Py_ssize_t size):
    cdef uint8_t prefix[PREFIX]
    prefix[0] = 0
    prefix[1] = size >> 24 & 0xFF
    prefix[2] = size >> 16 & 0xFF
    prefix[3] = size >> 8 & 0xFF
    prefix[4] = size & 0xFF
    return PyBytes_FromStringAndSize(<const char*> prefix, PREFIX)


cdef class Session:
    """HTTP/2 of one connection.

    Args:
        new_call: Makes a Call for each that a client begins; without arguments. None: we are the client.
        max_message_bytes: Larger messages are the end of their call.
        max_calls: At the same time; a client waits with others.
        window_bytes: Of a call, sent by the other end and not yet taken.
    """

    cdef nghttp2_session* _session
    cdef object _new_call
    cdef Py_ssize_t _max_message_bytes, _window_bytes
    cdef PyObject* _out
    """Bytes, while they are made by `send`."""
    cdef Py_ssize_t _filled
    cdef dict _calls
    cdef list _news
    cdef object _error
    cdef bint _gone

    def __cinit__(self, new_call, Py_ssize_t max_message_bytes, uint32_t max_calls, int32_t window_bytes):
        cdef nghttp2_option* option = NULL
        cdef nghttp2_settings_entry settings[4]
        self._new_call, self._max_message_bytes = new_call, max_message_bytes
        self._window_bytes = window_bytes
        self._calls, self._news = {}, []
        if nghttp2_option_new(&option):
            raise MemoryError
        nghttp2_option_set_no_auto_window_update(option, 1)
        nghttp2_option_set_no_closed_streams(option, 1)
        try:
            if new_call is None:
                _check(nghttp2_session_client_new2(&self._session, _client_callbacks, <void*> self, option))
            else:
                _check(nghttp2_session_server_new2(&self._session, _callbacks, <void*> self, option))
        finally:
            nghttp2_option_del(option)
        if new_call is None:
            settings[0].settings_id, settings[0].value = NGHTTP2_SETTINGS_ENABLE_PUSH, 0
        else:
            settings[0].settings_id, settings[0].value = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, max_calls
        settings[1].settings_id, settings[1].value = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window_bytes
        settings[2].settings_id, settings[2].value = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, 16 * 1024
        settings[3].settings_id, settings[3].value = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1
        _check(nghttp2_submit_settings(self._session, NGHTTP2_FLAG_NONE, settings, 4))
        _check(nghttp2_session_set_local_window_size(self._session, NGHTTP2_FLAG_NONE, 0, 4 * window_bytes))

    def __dealloc__(self):
        nghttp2_session_del(self._session)

    @property
    def calls(self):
        """Those that are not over."""
        return list(self._calls.values())

    def receive(self, bytes content not None):
        """Takes what the other end has sent. Raises ConnectionError; `send` may still have a last word."""
        cdef ssize_t read
        if self._gone:
            return
        read = nghttp2_session_mem_recv(
            self._session, <const uint8_t*> PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content)
        )
        self._raise_error()
        if read < 0:
            raise ConnectionError(nghttp2_strerror(<int> read).decode())

    def send(self):
        """What is to be sent now, some 64 KiB of it at most; nothing: b"". Raises ConnectionError."""
        cdef const uint8_t* frame
        cdef ssize_t size
        if self._gone or not nghttp2_session_want_write(self._session):
            return b""
        self._filled = 0
        try:
            while self._filled < SEND_BYTES:
                size = nghttp2_session_mem_send(self._session, &frame)
                self._raise_error()
                if size < 0:
                    raise ConnectionError(nghttp2_strerror(<int> size).decode())
                if size == 0:
                    break
                memcpy(self._more(size), frame, size)
            if not self._filled:
                return b""
            _PyBytes_Resize(&self._out, self._filled)
            return <bytes> self._out
        finally:
            Py_XDECREF(self._out)
            self._out = NULL

    cdef uint8_t* _more(self, Py_ssize_t size) except NULL:
        """Where so many bytes are to be written."""
        cdef Py_ssize_t room = 0 if self._out == NULL else PyBytes_GET_SIZE(<bytes> self._out)
        cdef uint8_t* to
        cdef bytes first
        if self._out == NULL:
            # One frame of data is to find room beyond what is sent at a time.
            first = PyBytes_FromStringAndSize(NULL, max(size, SEND_BYTES + FRAME_BYTES))
            Py_INCREF(first)
            self._out = <PyObject*> first
        elif self._filled + size > room:
            _PyBytes_Resize(&self._out, 2 * (self._filled + size))
        to = <uint8_t*> PyBytes_AS_STRING(<bytes> self._out) + self._filled
        self._filled += size
        return to

    def news(self):
        """The calls of which there is something new."""
        news, self._news = self._news, []
        for call in news:
            (<Call> call)._told = False
        return news

    @property
    def over(self):
        """Whether the connection has nothing to send or to receive any more."""
        return not (nghttp2_session_want_read(self._session) or nghttp2_session_want_write(self._session))

    @property
    def wants_to_send(self):
        """Whether `send` has something."""
        return not self._gone and nghttp2_session_want_write(self._session) != 0

    def begin(self, Call call not None, list headers not None):
        """Begins a call, as a client. `headers`: pairs of bytes, pseudo headers first; 32 at most.

        Raises ValueError, ConnectionError.
        """
        cdef nghttp2_nv fields[MOST_FIELDS]
        cdef nghttp2_data_provider provider
        cdef int32_t stream_id
        if call._session is not None:
            raise ValueError("the call has begun already")
        if len(headers) > MOST_FIELDS:
            raise ValueError(f"{len(headers)} headers; at most {MOST_FIELDS}")
        provider.source.ptr = NULL
        provider.read_callback = _on_read
        _fill(fields, headers)
        stream_id = nghttp2_submit_request(
            self._session, NULL, fields, len(headers), &provider, <void*> call
        )
        _check(min(stream_id, 0))
        call._session, call.stream_id, call._headers_sent = self, stream_id, True
        self._calls[stream_id] = call

    def announce_end(self):
        """Tells the client that it will be closed: it begins nothing more here."""
        nghttp2_submit_shutdown_notice(self._session)

    def end(self):
        """Ends it when what is to be sent is sent."""
        nghttp2_session_terminate_session(self._session, NGHTTP2_NO_ERROR)

    def close(self):
        """Ends every call: the connection is gone, and nothing is received or sent any more."""
        self._gone = True
        for call in self.calls:
            self._close(call)

    cdef int _respond(self, Call call, list headers, bint more) except -1:
        cdef nghttp2_nv fields[MOST_FIELDS]
        cdef nghttp2_data_provider provider
        provider.source.ptr = NULL
        provider.read_callback = _on_read
        _fill(fields, headers)
        _check(nghttp2_submit_response(
            self._session, call.stream_id, fields, len(headers), &provider if more else NULL
        ))
        return 0

    cdef int _tell(self, Call call) except -1:
        if not call._told:
            call._told = True
            self._news.append(call)
        return 0

    cdef int _close(self, Call call) except -1:
        self._calls.pop(call.stream_id, None)
        call.closed = True
        self._tell(call)
        return 0

    cdef int _fail(self, error) noexcept:
        self._error = error
        return NGHTTP2_ERR_CALLBACK_FAILURE

    cdef int _raise_error(self) except -1:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return 0


cdef int _check(int code) except -1:
    if code == NGHTTP2_ERR_NOMEM:
        raise MemoryError
    if code:
        raise ConnectionError(nghttp2_strerror(code).decode())
    return 0


cdef int _fill(nghttp2_nv* fields, list pairs) except -1:
    """The bytes stay where they are: nghttp2 copies them before it returns."""
    cdef Py_ssize_t number
    cdef bytes name, value
    for number in range(len(pairs)):
        name, value = pairs[number]
        fields[number].name = <uint8_t*> PyBytes_AS_STRING(name)
        fields[number].value = <uint8_t*> PyBytes_AS_STRING(value)
        fields[number].namelen = PyBytes_GET_SIZE(name)
        fields[number].valuelen = PyBytes_GET_SIZE(value)
        fields[number].flags = 0
    return 0


cdef inline Call _call_of(nghttp2_session* session, int32_t stream_id):
    cdef void* found = nghttp2_session_get_stream_user_data(session, stream_id)
    return None if found == NULL else <Call> found


cdef inline bint _is_request(const nghttp2_frame* frame) noexcept:
    """Whether these are the headers that begin a call."""
    return frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST


cdef int _on_begin_headers(nghttp2_session* raw, const nghttp2_frame* frame, void* data) noexcept:
    cdef Session session = <Session> data
    cdef Call call
    if not _is_request(frame):
        return 0
    try:
        call = session._new_call()
        call._session, call.stream_id = session, frame.hd.stream_id
        session._calls[call.stream_id] = call
        nghttp2_session_set_stream_user_data(raw, call.stream_id, <void*> call)
    except BaseException as error:
        return session._fail(error)
    return 0


cdef int _on_header(
    nghttp2_session* raw, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
    const uint8_t* value, size_t value_size, uint8_t flags, void* data
) noexcept:
    cdef Session session = <Session> data
    cdef Call call
    if session._new_call is not None and not _is_request(frame):
        return 0
    try:
        call = _call_of(raw, frame.hd.stream_id)
        if call is None:
            return 0
        key = PyBytes_FromStringAndSize(<const char*> name, name_size)
        content = PyBytes_FromStringAndSize(<const char*> value, value_size)
        if key in _HEAD or name_size and name[0] == b":":
            call.head[key] = content
        else:
            call.metadata.append((key, content))
    except BaseException as error:
        return session._fail(error)
    return 0


cdef int _on_frame_recv(nghttp2_session* raw, const nghttp2_frame* frame, void* data) noexcept:
    cdef Session session = <Session> data
    cdef Call call
    if frame.hd.type != NGHTTP2_HEADERS and frame.hd.type != NGHTTP2_DATA:
        return 0
    try:
        call = _call_of(raw, frame.hd.stream_id)
        if call is None:
            return 0
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            call.ended = True
            if call._prefix_size and call.fault is None:
                call.fault = INTERNAL, "the other end has ended the call within a message"
        session._tell(call)
    except BaseException as error:
        return session._fail(error)
    return 0


cdef int _on_data(
    nghttp2_session* raw, uint8_t flags, int32_t stream_id, const uint8_t* content, size_t size, void* data
) noexcept:
    cdef Session session = <Session> data
    cdef Call call
    nghttp2_session_consume_connection(raw, size)
    try:
        call = _call_of(raw, stream_id)
        if call is not None:
            call._receive(content, size)
            call._held += size
            if not call._unread():
                call._credit()
    except BaseException as error:
        return session._fail(error)
    return 0


cdef int _on_frame_send(nghttp2_session* raw, const nghttp2_frame* frame, void* data) noexcept:
    """What the client may still want to say in a call that we have ended is not waited for."""
    cdef Session session = <Session> data
    cdef Call call
    if frame.hd.type != NGHTTP2_HEADERS or not frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        return 0
    try:
        call = _call_of(raw, frame.hd.stream_id)
        if call is not None and not call.ended:
            nghttp2_submit_rst_stream(raw, NGHTTP2_FLAG_NONE, call.stream_id, NGHTTP2_NO_ERROR)
    except BaseException as error:
        return session._fail(error)
    return 0


cdef int _on_close(nghttp2_session* raw, int32_t stream_id, uint32_t code, void* data) noexcept:
    cdef Session session = <Session> data
    cdef Call call
    try:
        call = _call_of(raw, stream_id)
        if call is not None:
            nghttp2_session_set_stream_user_data(raw, stream_id, NULL)
            session._close(call)
    except BaseException as error:
        return session._fail(error)
    return 0


cdef ssize_t _on_read(
    nghttp2_session* raw, int32_t stream_id, uint8_t* to, size_t room, uint32_t* flags,
    nghttp2_data_source* source, void* data
) noexcept:
    """How much of a call's next frame there is; `_on_send_data` writes it."""
    cdef Session session = <Session> data
    cdef Call call
    cdef nghttp2_nv fields[MOST_FIELDS]
    cdef ssize_t size
    try:
        call = _call_of(raw, stream_id)
        if call is None:
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        size = min(call.unsent, <Py_ssize_t> room)
        if size == call.unsent and call._trailers is not None:
            flags[0] |= NGHTTP2_DATA_FLAG_EOF
            if call._trailers:
                flags[0] |= NGHTTP2_DATA_FLAG_NO_END_STREAM
                _fill(fields, call._trailers)
                _check(nghttp2_submit_trailer(raw, stream_id, fields, len(call._trailers)))
        elif not size:
            call._deferred = True
            return NGHTTP2_ERR_DEFERRED
        flags[0] |= NGHTTP2_DATA_FLAG_NO_COPY
        return size
    except BaseException as error:
        return session._fail(error)


cdef int _on_send_data(
    nghttp2_session* raw, nghttp2_frame* frame, const uint8_t* head, size_t size,
    nghttp2_data_source* source, void* data
) noexcept:
    cdef Session session = <Session> data
    cdef Call call
    cdef uint8_t* to
    try:
        call = _call_of(raw, frame.hd.stream_id)
        if call is None:
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        to = session._more(FRAME_HEAD + size)
        memcpy(to, head, FRAME_HEAD)
        call._write(to + FRAME_HEAD, size)
    except BaseException as error:
        return session._fail(error)
    return 0


cdef frozenset _HEAD = frozenset((
    b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"accept-encoding"
))

cdef nghttp2_session_callbacks* _new_callbacks(bint of_client) except NULL:
    cdef nghttp2_session_callbacks* callbacks = NULL
    if nghttp2_session_callbacks_new(&callbacks):
        raise MemoryError
    if not of_client:
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, _on_begin_headers)
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, _on_frame_send)
    nghttp2_session_callbacks_set_on_header_callback(callbacks, _on_header)
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, _on_frame_recv)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, _on_data)
    nghttp2_session_callbacks_set_send_data_callback(callbacks, _on_send_data)
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, _on_close)
    return callbacks

cdef nghttp2_session_callbacks* _callbacks = _new_callbacks(False)
cdef nghttp2_session_callbacks* _client_callbacks = _new_callbacks(True)
