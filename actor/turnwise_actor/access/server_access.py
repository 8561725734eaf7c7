"""How a server lets callers in: TLS, client certificates, credentials; and what it refuses to do without."""

from __future__ import annotations

import argparse
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import grpc
import grpc.aio

from turnwise._channels import stays_here
from turnwise_actor.access.files import Followed

T = TypeVar("T")


class AccessError(ValueError):
    """The settings do not fit together or to the address, or a file of them is wrong: says what to change."""


@dataclass(frozen=True)
class ServerAccess:
    """Who may connect to a server, over what. The default suits loopback alone: plain text, anybody."""

    certificate: Path | None = None
    """PEM: the server's certificate, then those between it and the CA. Read anew when it changes."""
    key: Path | None = None
    """PEM: its private key."""
    client_ca: Path | None = None
    """PEM: the CA of client certificates. Given: a client without such a certificate cannot connect."""
    credentials: Path | None = None
    """The credential file. Given: every call needs a credential of it and one of the call's roles."""
    insecure: bool = False
    """Lets anybody in, in plain text, at any address."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise AccessError("--tls-cert and --tls-key: got one of them; wanted both")
        if self.client_ca is not None and self.certificate is None:
            raise AccessError("--tls-client-ca: wanted --tls-cert and --tls-key beside it")

    @property
    def guarded(self) -> bool:
        """Whether callers must say who they are."""
        return self.client_ca is not None or self.credentials is not None

    @property
    def closed(self) -> bool:
        """Whether a process of the same machine that brings nothing is turned away."""
        return self.certificate is not None or self.guarded

    def check(self, address: str) -> None:
        """Raises AccessError when listening at the address would let others in unasked."""
        if self.insecure or stays_here(address):
            return
        missing = [] if self.certificate else ["--tls-cert and --tls-key"]
        missing += [] if self.guarded else ["--tls-client-ca or --credentials"]
        if missing:
            raise AccessError(
                f"{address} can be reached from other machines: wanted {', and '.join(missing)}; "
                "or --insecure, which leaves that door open"
            )

    def bind(self, server: grpc.aio.Server, address: str) -> int:
        """Has the server listen at the address; returns the port.

        Raises:
            AccessError: A certificate or key is wrong.
            RuntimeError: The address cannot be listened on.
        """
        if self.certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._server_credentials())

    def ssl_context(self) -> ssl.SSLContext | None:
        """For servers that do TLS with Python's own; None: plain text. Raises AccessError."""
        if self.certificate is None:
            return None
        followed = self._followed(_ssl_context)

        # Called at each handshake; the context decides about what comes after.
        def renew(handshake: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            handshake.context = followed.latest()

        listening = followed.value
        listening.sni_callback = renew
        return listening

    def _followed(self, read: Callable[[Path, Path, Path | None], T]) -> Followed[T]:
        """What the files say at each handshake."""
        assert self.certificate is not None
        assert self.key is not None
        files = [file for file in (self.certificate, self.key, self.client_ca) if file is not None]
        return Followed("certificate", files, partial(read, self.certificate, self.key, self.client_ca))

    def _server_credentials(self) -> grpc.ServerCredentials:
        """The certificate as its files have it at each handshake."""
        followed = self._followed(_certificate_configuration)

        # Called by gRPC at each handshake, on a thread of its own.
        def renewed() -> grpc.ServerCertificateConfiguration | None:
            return followed.value if followed.look() else None

        return grpc.dynamic_ssl_server_credentials(
            followed.value,
            cast("Callable[[], grpc.ServerCertificateConfiguration]", renewed),
            require_client_authentication=self.client_ca is not None,
        )

    def arguments(self) -> list[str]:
        """As a command line that `from_options` reads."""
        given = {
            "--tls-cert": self.certificate,
            "--tls-key": self.key,
            "--tls-client-ca": self.client_ca,
            "--credentials": self.credentials,
        }
        told = [part for flag, file in given.items() if file for part in (flag, str(file.absolute()))]
        return [*told, *(["--insecure"] if self.insecure else [])]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ServerAccess` to a command line."""
    group = parser.add_argument_group("who may connect")
    file = partial(group.add_argument, type=Path, metavar="FILE")
    file("--tls-cert", help="the server's certificate chain, PEM; read anew when it changes")
    file("--tls-key", help="its private key, PEM")
    file("--tls-client-ca", help="mutual TLS: clients need a certificate of this CA, PEM")
    file("--credentials", help="who may call what, see `turnwise credential`; read anew when it changes")
    group.add_argument("--insecure", action="store_true", help="listen anywhere, in plain text, for anybody")


def from_options(options: argparse.Namespace) -> ServerAccess:
    """What the command line says. Raises AccessError."""
    return ServerAccess(
        certificate=options.tls_cert,
        key=options.tls_key,
        client_ca=options.tls_client_ca,
        credentials=options.credentials,
        insecure=options.insecure,
    )


def _certificate_configuration(
    certificate: Path, key: Path, client_ca: Path | None
) -> grpc.ServerCertificateConfiguration:
    check_pair(certificate, key)
    chain = (key.read_bytes(), certificate.read_bytes())
    roots = None if client_ca is None else read_ca(client_ca)
    return grpc.ssl_server_certificate_configuration([chain], roots)


def _ssl_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    check_pair(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(certificate, key, password=_no_password)
    # Whoever comes back is looked at again: a ticket would let in by what was true before.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    if client_ca is not None:
        read_ca(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


def check_pair(certificate: Path, key: Path) -> None:
    """Raises AccessError unless the key is the certificate's; gRPC itself tells no more than "failed"."""
    try:
        ssl.create_default_context().load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise AccessError(f"certificate {certificate} with key {key}: {_reason(error)}") from error


def read_ca(file: Path) -> bytes:
    """The CA certificates of a PEM file. Raises AccessError."""
    try:
        ssl.create_default_context(cafile=file)
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise AccessError(f"CA file {file}: {_reason(error)}") from error


def _no_password() -> str:
    raise ValueError("the key is encrypted; wanted one without a password")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no PEM, or they do not belong together ({error.reason})"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
