"""One connection: an asyncio protocol around `compiled.http2.Session`."""

from __future__ import annotations

import asyncio
import logging
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

from turnwise_actor.http2 import HTTP2
from turnwise_actor.http2.call import Call

if TYPE_CHECKING:
    from turnwise_actor.http2.server import Http2Server

MAX_CALLS = 1_024
"""At the same time on one connection; a client waits with others."""
WINDOW_BYTES = 256 * 1024
"""Of a call, on their way or not yet taken by its servicer."""
_GREETING_S = 20.0
"""A client that has not begun to speak HTTP/2 by then is hung up on."""

logger = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """Passes bytes to and fro, and news to calls."""

    def __init__(self, server: Http2Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop
        self.peer = ""
        self._transport: Any = None
        self._session: Any = None
        self._flushing = False
        self._paused = False
        self._auth: dict[str, list[bytes]] | None = None
        self._greeting: asyncio.TimerHandle | None = None

    # Called by the event loop.

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        self._transport = transport
        self.peer = _peer(transport.get_extra_info("peername"))
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            transport.abort()
            return
        assert HTTP2 is not None
        limit = self.server.max_message_bytes
        self._session = HTTP2.Session(partial(Call, self), limit, MAX_CALLS, WINDOW_BYTES)
        self._greeting = self.loop.call_later(_GREETING_S, transport.abort)
        self.server.connections.add(self)
        self.flush_soon()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        session = self._session
        if session is None:
            return
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None
        try:
            session.receive(data)
        except HTTP2.ConnectionError as error:  # type: ignore[union-attr]
            self._give_up(error)
            return
        self._pass_on()
        if not self._flushing and session.wants_to_send:
            self.flush_soon()

    def pause_writing(self) -> None:
        """The client, or the network, does not take what is sent."""
        self._paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        self.flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """Every call is over; nobody is left to be told."""
        self.server.connections.discard(self)
        if self._greeting is not None:
            self._greeting.cancel()
        if self._session is not None:
            self._session.close()
            self._pass_on()

    # Called by calls and the server.

    def flush_soon(self) -> None:
        """Sends what there is to send, once everything that is being done has been done."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        session, transport = self._session, self._transport
        if session is None or transport.is_closing():
            return
        try:
            while not self._paused and (content := session.send()):
                transport.write(content)
        except HTTP2.ConnectionError as error:  # type: ignore[union-attr]
            self._give_up(error)
            return
        self._pass_on()
        if session.over:
            transport.close()
        elif session.wants_to_send and not self._paused:
            self.flush_soon()

    def _pass_on(self) -> None:
        """Tells calls that something has come of them."""
        for call in self._session.news():
            call.news()

    def _give_up(self, error: Exception) -> None:
        logger.debug("hung up on %s: %s", self.peer, error)
        self._transport.abort()

    def announce_end(self) -> None:
        """The client is to begin nothing more here."""
        if self._session is not None:
            self._session.announce_end()
            self.flush_soon()

    def end(self) -> None:
        """Closes it when what is to be sent is sent."""
        if self._session is None:
            self._transport.abort()
        else:
            self._session.end()
            self.flush_soon()

    def abort(self) -> None:
        """Closes it now."""
        self._transport.abort()

    @property
    def calls(self) -> list[Call]:
        """Those that are not over."""
        return [] if self._session is None else self._session.calls

    def auth_context(self) -> dict[str, list[bytes]]:
        """What gRPC tells of a verified client certificate."""
        if self._auth is None:
            tls = self._transport.get_extra_info("ssl_object")
            self._auth = {} if tls is None else _certified(tls)
        return self._auth


def _certified(tls: ssl.SSLObject) -> dict[str, list[bytes]]:
    told, encoded = tls.getpeercert(), tls.getpeercert(binary_form=True)
    if not told or encoded is None:
        return {}
    subject: Any = told.get("subject", ())
    others: Any = told.get("subjectAltName", ())
    return {
        "x509_common_name": [
            value.encode() for fields in subject for name, value in fields if name == "commonName"
        ],
        "x509_subject_alternative_name": [value.encode() for _, value in others],
        "x509_pem_cert": [ssl.DER_cert_to_PEM_cert(encoded).encode()],
    }


def _peer(address: Any) -> str:
    """As gRPC writes it."""
    if not isinstance(address, tuple):
        return f"unix:{address or ''}"
    host, port = address[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
