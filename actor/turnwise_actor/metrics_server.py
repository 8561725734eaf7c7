"""Serves metrics to Prometheus: plain HTTP, from the event loop of the process that they tell of.

In the loop and not in a thread: values are read when they are asked for, all at one moment, and nothing
changes under the reader. A connection carries one request and ends.
"""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.registry import Collector

_MAX_CONNECTIONS = 16
"""Beyond it a connection is closed unanswered; Prometheus opens one at a time."""
_MAX_HEAD_BYTES = 8192
_TIMEOUT_S = 5.0
"""For a connection from its first byte to its last."""
_PATHS = ("/", "/metrics")
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """Answers `GET /metrics` from `start` to `stop`: what the collector tells, and CPU, memory and files."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)
        ProcessCollector(namespace="turnwise", registry=self._registry)
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.address = ""
        """HOST:PORT, once it listens."""

    async def start(self, address: str) -> None:
        """Listens at HOST:PORT; port 0 lets the system choose. Raises OSError."""
        host, _, port = address.rpartition(":")
        try:
            self._server = await asyncio.start_server(
                self._answer, host.strip("[]"), int(port), limit=_MAX_HEAD_BYTES
            )
        except OSError as error:
            raise OSError(error.errno, f"metrics: cannot listen on {address}: {error.strerror}") from error
        self.address = f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Closes the port and what is connected to it. Harmless before `start`."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            if len(self._connections) <= _MAX_CONNECTIONS:
                await asyncio.wait_for(self._converse(reader, writer), _TIMEOUT_S)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # whoever asked is slow, gone, or speaks something else
        finally:
            writer.transport.abort()
            self._connections.discard(connection)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        status, content = self._reply(await reader.readuntil(b"\r\n\r\n"))
        head = (
            f"HTTP/1.1 {status}",
            f"Content-Type: {_TEXT_FORMAT}",
            f"Content-Length: {len(content)}",
            "Connection: close",
        )
        writer.write("\r\n".join((*head, "", "")).encode() + content)
        writer.close()
        await writer.wait_closed()

    def _reply(self, head: bytes) -> tuple[str, bytes]:
        """Status and content for the head of a request."""
        match head.partition(b"\r\n")[0].decode("latin-1").split(" "):
            case ["GET", target, version] if version.startswith("HTTP/"):
                if target.partition("?")[0] in _PATHS:
                    return "200 OK", generate_latest(self._registry)
                return "404 Not Found", b"the metrics are at /metrics\n"
            case [_, _, version] if version.startswith("HTTP/"):
                return "405 Method Not Allowed", b"metrics are read with GET\n"
        return "400 Bad Request", b"this is no request of HTTP\n"
