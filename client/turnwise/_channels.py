"""Where the actors are and how to connect to them: shared by both clients."""

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

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


WILDCARDS = ("0.0.0.0", "[::]")
"""Hosts by which a server listens at all addresses of its machine."""
NAME, LEARNER = "dns:///", "learner://"
_WANTED = "'host:port', 'dns:///name:port' or 'learner://host:port'"


class Source(NamedTuple):
    """Where addresses of actors come from while the client runs."""

    kind: str
    """`NAME`: each record of a DNS name is an actor. `LEARNER`: the learner's list of its actors."""
    target: str
    """`host:port` of the name, or of the learner."""

    def __str__(self) -> str:
        return f"{self.kind}{self.target}"


@dataclass(frozen=True)
class Connection:
    """What both clients were told about their actors, checked.

    Attributes:
        targets: gRPC targets, each once.
        sources: Tell of more of them while the client runs.
        credentials: A bearer token, or what gives one for each stream and call.
        tls: gRPC's channel credentials; None: plain text.
        authorities: The name that a target was found under, if any: its certificate is for that name.
    """

    targets: tuple[str, ...]
    sources: tuple[Source, ...]
    credentials: Credentials
    tls: grpc.ChannelCredentials | None
    authorities: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, address: str | Sequence[str], credentials: Credentials, tls: Tls) -> "Connection":
        """Checks what the caller gave.

        Raises:
            InvalidRequest: No address, one of an unknown form, or credentials that would travel in plain
                text to another machine.
        """
        given = [address] if isinstance(address, str) else list(address)
        if not given:
            raise invalid("address", address, f"{_WANTED}, or a list of them")
        found = tuple(dict.fromkeys(_target_or_source(each) for each in given))
        targets = tuple(each for each in found if isinstance(each, str))
        sources = tuple(each for each in found if isinstance(each, Source))
        connection = cls(targets, sources, credentials, _tls(tls))
        for target in (*targets, *(source.target for source in sources)):
            if not connection.admits(target):
                raise invalid("tls", tls, f"True or a CA file: credentials go to {target}")
        return connection

    def admits(self, target: str) -> bool:
        """Whether a target may be talked to: credentials go to other machines over TLS alone."""
        return self.credentials is None or self.tls is not None or stays_here(target)

    def channel(self, target: str) -> grpc.Channel:
        """A channel to a target."""
        if self.tls is None:
            return grpc.insecure_channel(target, self.options(target))
        return grpc.secure_channel(target, self.tls, self.options(target))

    def options(self, target: str) -> list[tuple[str, int | str]]:
        """Options of a channel to a target."""
        authority = self.authorities.get(target)
        return [*OPTIONS] if authority is None else [*OPTIONS, ("grpc.default_authority", authority)]

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


def _target_or_source(address: object) -> str | Source:
    if not isinstance(address, str):
        raise invalid("address", address, _WANTED)
    for kind, wanted in ((NAME, "'dns:///name:port'"), (LEARNER, "'learner://host:port'")):
        if address.startswith(kind):
            target = address.removeprefix(kind)
            if not is_host_and_port(target):
                raise invalid("address", address, f"{wanted}, with a port from 1 to 65535")
            return Source(kind, target)
    if not address.startswith(("unix:", "dns:", "ipv4:", "ipv6:")) and not is_host_and_port(address):
        raise invalid("address", address, _WANTED)
    return address


def is_host_and_port(text: str) -> bool:
    """Whether it is `host:port`."""
    host, _, port = text.rpartition(":")
    plain = host != "" and not set("/, ") & set(host)
    return plain and port.isascii() and port.isdecimal() and 0 < int(port) < 65536


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
