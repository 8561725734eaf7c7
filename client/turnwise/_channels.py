"""Where the actors are and how to connect to them: shared by both clients."""

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

from turnwise._errors import AccessDenied, invalid

Credentials: TypeAlias = str | Callable[[], str] | None
Tls: TypeAlias = bool | str | Path | grpc.ChannelCredentials | None

OPTIONS: list[tuple[str, int]] = [
    # A connection of its own for each channel: a client that gives one up gets a new one.
    ("grpc.use_local_subchannel_pool", 1),
    # gRPC waits up to 120 s between attempts to connect; an actor is back in seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Streams are silent while people think; balancers drop silent connections without a word.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]


@dataclass(frozen=True)
class Connection:
    """What both clients were told about their actors, checked.

    Attributes:
        targets: gRPC targets, each once.
        credentials: A bearer token, or what gives one for each stream and call.
        tls: gRPC's channel credentials; None: plain text.
    """

    targets: tuple[str, ...]
    credentials: Credentials
    tls: grpc.ChannelCredentials | None

    @classmethod
    def of(cls, address: str | Sequence[str], credentials: Credentials, tls: Tls) -> "Connection":
        """Checks what the caller gave.

        Raises:
            InvalidRequest: No address, one that is not `host:port`, or credentials that would travel in
                plain text to another machine.
        """
        given = [address] if isinstance(address, str) else list(address)
        if not given:
            raise invalid("address", address, "'host:port', or a list of them")
        targets = tuple(dict.fromkeys(_target(each) for each in given))
        channel_credentials = _tls(tls)
        if credentials is not None and channel_credentials is None:
            for target in targets:
                if not stays_here(target):
                    raise invalid("tls", tls, f"True or a CA file: credentials go to {target}")
        return cls(targets, credentials, channel_credentials)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata for a stream or call that begins now.

        Raises:
            AccessDenied: The caller's `credentials` raised something.
        """
        try:
            token = self.credentials() if callable(self.credentials) else self.credentials
        except Exception as error:
            raise AccessDenied(f"credentials() raised {error!r}") from error
        return () if token is None else (("authorization", f"Bearer {token}"),)


def _target(address: object) -> str:
    wanted = "'host:port', such as 'localhost:50051'"
    if not isinstance(address, str):
        raise invalid("address", address, wanted)
    if address.startswith(("unix:", "dns:", "ipv4:", "ipv6:")):
        return address
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal() or not 0 < int(port) < 65536:
        raise invalid("address", address, wanted)
    return address


def _tls(tls: Tls) -> grpc.ChannelCredentials | None:
    if tls is None or tls is False:
        return None
    if tls is True:
        return grpc.ssl_channel_credentials()
    if isinstance(tls, str | Path):
        return grpc.ssl_channel_credentials(Path(tls).read_bytes())
    if isinstance(tls, grpc.ChannelCredentials):
        return tls
    raise invalid("tls", tls, "True, the path of a CA file in PEM, or grpc.ChannelCredentials")


def stays_here(target: str) -> bool:
    """Whether what is sent to the target never leaves this machine."""
    if target.startswith("unix:"):
        return True
    host = target.rpartition(":")[0].removeprefix("ipv4:").removeprefix("ipv6:").strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
