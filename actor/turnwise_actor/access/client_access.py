"""How a client gets in: the CA that it trusts, its own certificate, its bearer token."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio

from turnwise._channels import stays_here
from turnwise_actor.access.files import Followed
from turnwise_actor.access.server_access import AccessError, check_pair, read_ca
from turnwise_actor.http2 import HTTP2
from turnwise_actor.http2.client import Stream, open_stream
from turnwise_actor.wires import AioStream

Metadata = tuple[tuple[str, str], ...]
Options = Sequence[tuple[str, int]]

_MAX_MESSAGE_BYTES = 4 * 1024 * 1024
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Of the environment: gRPC goes by them (and knows when not to), connections of our own do not."""

LOCAL_TOKEN = Path("keys", "local-token")
"""Where a data folder has the token of its learner's local door."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClientAccess:
    """What a client brings to a server. The default is for loopback: plain text, nobody in particular."""

    tls: bool = False
    """TLS although no `ca` is named: the system's are trusted."""
    ca: Path | None = None
    """PEM: the CA of the server's certificate."""
    certificate: Path | None = None
    """PEM: the client's own certificate, for mutual TLS."""
    key: Path | None = None
    """PEM: its private key."""
    token_file: Path | None = None
    """Holds the bearer token; read for every call and stream, so it may change at any time."""
    server_name: str = ""
    """TLS: what the server's certificate is made out to, where that is not the address it is called at."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise AccessError("certificate and key of the client: got one of them; wanted both")

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.tls or self.ca is not None or self.certificate is not None

    def check(self, address: str) -> None:
        """Raises AccessError when the token would travel to another machine in plain text."""
        if self.token_file is not None and not self.encrypted and not stays_here(address):
            raise AccessError(f"the token in {self.token_file} would go to {address} unencrypted; wanted TLS")

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """From the files as they are now; None: plain text. Raises AccessError."""
        if not self.encrypted:
            return None
        roots = None if self.ca is None else read_ca(self.ca)
        if self.certificate is None or self.key is None:
            return grpc.ssl_channel_credentials(roots)
        check_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(roots, self.key.read_bytes(), self.certificate.read_bytes())

    def ssl_context(self) -> ssl.SSLContext | None:
        """From the files as they are now, for connections by Python's own TLS; None: plain text.

        Raises AccessError.
        """
        if not self.encrypted:
            return None
        if self.ca is not None:
            read_ca(self.ca)
        context = ssl.create_default_context(cafile=self.ca)
        context.set_alpn_protocols(["h2"])
        if self.certificate is not None and self.key is not None:
            check_pair(self.certificate, self.key)
            context.load_cert_chain(self.certificate, self.key)
        return context

    def channel_options(self, options: Options) -> list[tuple[str, Any]]:
        """With what the name of the server adds."""
        named = [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []
        return [*options, *named]

    def token(self) -> str:
        """The bearer token as the file has it now. Raises AccessError."""
        assert self.token_file is not None
        try:
            token = self.token_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise AccessError(f"token file {self.token_file}: {type(error).__name__}") from error
        if not token.isascii() or not token.isprintable() or not token:
            raise AccessError(f"token file {self.token_file}: wanted one line of ASCII")
        return token

    def metadata(self) -> Metadata:
        """What goes with a call or stream that begins now. Raises AccessError."""
        return () if self.token_file is None else (("authorization", f"Bearer {self.token()}"),)

    def connection_files(self) -> list[Path]:
        """The files that a connection is made from."""
        return [file for file in (self.ca, self.certificate, self.key) if file is not None]

    def channel(self, address: str, options: Options = ()) -> grpc.Channel:
        """A channel whose calls bring the token. Raises AccessError."""
        self.check(address)
        credentials = self.channel_credentials()
        if credentials is None:
            channel = grpc.insecure_channel(address, list(options))
        else:
            channel = grpc.secure_channel(address, credentials, self.channel_options(options))
        if self.token_file is not None:
            channel = grpc.intercept_channel(channel, _Bearer(self.metadata))
        return channel


class Link:
    """The way to one server over asyncio, for as long as the process lives.

    Certificate files that have changed count for what is begun from then on, so that renewing them needs no
    restart. Files that are broken meanwhile, or missing, leave it as it was.

    Raises on construction: AccessError.
    """

    def __init__(self, address: str, access: ClientAccess, options: Options = ()) -> None:
        access.check(address)
        self._address = address
        self._access = access
        self._options = access.channel_options(options)
        self._way = Followed("certificates", access.connection_files(), self._connect)
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self) -> grpc.aio.Channel:
        """The channel to begin a call or stream on."""
        return self._latest().channel

    async def stream(self, path: str, max_message_bytes: int = _MAX_MESSAGE_BYTES) -> Stream | AioStream:
        """Begins a call of a method, given by its path, whose messages go both ways, serialized.

        Where HTTP/2 of our own was built and no proxy is in between, it has a connection of its own and its
        messages cost a fraction of those on the channel. Raises StreamEndedError.
        """
        if HTTP2 is None or any(map(os.environ.get, _PROXIES)):
            return AioStream(self.channel().stream_stream(path, None, None)(None, metadata=self.metadata()))
        name = self._access.server_name
        return await open_stream(
            self._address, path, self.metadata(), self._latest().tls, name, max_message_bytes
        )

    def metadata(self) -> Metadata:
        """What goes with a call or stream that begins now: nothing while the token cannot be read."""
        try:
            return self._access.metadata()
        except AccessError as error:
            logger.warning("%s", error)
            return ()

    async def close(self) -> None:
        """Ends the channel and all that goes on over it."""
        await asyncio.gather(*self._closing)
        await self._way.value.channel.close(None)

    def _latest(self) -> _Way:
        old = self._way.value.channel
        if self._way.look():
            # What goes on over the old channel breaks, and is begun anew over the new one.
            task = asyncio.ensure_future(_close(old))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        return self._way.value

    def _connect(self) -> _Way:
        credentials, tls = self._access.channel_credentials(), self._access.ssl_context()
        if credentials is None:
            channel = grpc.aio.insecure_channel(self._address, self._options)
        else:
            channel = grpc.aio.secure_channel(self._address, credentials, self._options)
        return _Way(channel, tls)


class _Way(NamedTuple):
    """What one state of the certificate files gives."""

    channel: grpc.aio.Channel
    tls: ssl.SSLContext | None
    """For connections of our own."""


async def _close(channel: grpc.aio.Channel) -> None:
    await channel.close(None)


class _Details(NamedTuple):
    """grpc.ClientCallDetails with other metadata."""

    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Adds the token, as it is now, to every call."""

    def __init__(self, metadata: Callable[[], Metadata]) -> None:
        self._metadata = metadata

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """See grpc.UnaryUnaryClientInterceptor."""
        details = client_call_details
        metadata = (*(details.metadata or ()), *self._metadata())
        named = (getattr(details, name, None) for name in _Details._fields[3:])
        return continuation(_Details(details.method, details.timeout, metadata, *named), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        """See grpc.UnaryStreamClientInterceptor."""
        return self.intercept_unary_unary(continuation, client_call_details, request)

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        """See grpc.StreamStreamClientInterceptor."""
        return self.intercept_unary_unary(continuation, client_call_details, request_iterator)
