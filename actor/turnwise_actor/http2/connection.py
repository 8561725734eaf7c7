"""One connection of a client to our server."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

from turnwise_actor.http2 import HTTP2
from turnwise_actor.http2.call import Call
from turnwise_actor.http2.carrier import Carrier

if TYPE_CHECKING:
    from turnwise_actor.http2.server import Http2Server

MAX_CALLS = 1_024
"""At the same time on one connection; a client waits with others."""
WINDOW_BYTES = 256 * 1024
"""Of a call, on their way or not yet taken by its servicer."""
_GREETING_S = 20.0
"""A client that has not begun to speak HTTP/2 by then is hung up on."""


class Connection(Carrier):
    """The server's end."""

    def __init__(self, server: Http2Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.server = server
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
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Every call is over; nobody is left to be told."""
        self.server.connections.discard(self)
        if self._greeting is not None:
            self._greeting.cancel()
        super().connection_lost(exc)

    # Called by the server and by calls.

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
