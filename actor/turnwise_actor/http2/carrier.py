"""Carries the bytes of one `compiled.http2.Session`, of either end: an asyncio protocol."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from turnwise_actor.http2 import HTTP2

logger = logging.getLogger(__name__)


class Carrier(asyncio.Protocol):
    """Passes bytes to and fro, and news to calls. To be derived from: `connection_made` sets what it has."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.peer = ""
        self._transport: Any = None
        self._session: Any = None
        self._flushing = False
        self._paused = False

    # Called by the event loop.

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        session = self._session
        if session is None:
            return
        try:
            session.receive(data)
        except HTTP2.ConnectionError as error:  # type: ignore[union-attr]
            self._give_up(error)
            return
        self._pass_on()
        if not self._flushing and session.wants_to_send:
            self.flush_soon()

    def pause_writing(self) -> None:
        """The other end, or the network, does not take what is sent."""
        self._paused = True

    def resume_writing(self) -> None:
        """It does again."""
        self._paused = False
        self.flush_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """Every call is over; nobody is left to be told."""
        if self._session is not None:
            self._session.close()
            self._pass_on()

    # Called by calls.

    def flush_soon(self) -> None:
        """Sends what there is to send, once everything that is being done has been done."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def abort(self) -> None:
        """Closes it now."""
        self._transport.abort()

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


def wake(waiting: asyncio.Future[None] | None) -> None:
    """Who waits, if somebody does."""
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
