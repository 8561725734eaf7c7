"""A certificate authority for tests, with real certificates in files."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from turnwise_actor.access.client_access import ClientAccess
from turnwise_actor.access.server_access import ServerAccess

HOSTS = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates; servers are at this machine's loopback address unless they are named."""

    def __init__(self, folder: Path, name: str = "test ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(_pem(self._sign(self._name, self._key)))

    def issue(self, name: str, unit: str = "", *, file: str = "", hosts: tuple[str, ...] = HOSTS) -> Pair:
        """A certificate of that common name; `unit` is its organizational unit, `hosts` names and IPs."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if unit:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
        file = file or name
        pair = Pair(self._folder / f"{file}.pem", self._folder / f"{file}.key")
        pair.certificate.write_bytes(_pem(self._sign(x509.Name(attributes), key, hosts)))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair

    def server(
        self, *, mutual: bool = False, credentials: Path | None = None, pair: Pair | None = None
    ) -> ServerAccess:
        """What a server with a certificate of this authority is told."""
        pair = pair or self.issue("server")
        return ServerAccess(pair.certificate, pair.key, self.file if mutual else None, credentials)

    def client(self, name: str = "", unit: str = "", token_file: Path | None = None) -> ClientAccess:
        """What a client is told that trusts this authority; with a name, it has a certificate of its own."""
        if not name:
            return ClientAccess(ca=self.file, token_file=token_file)
        pair = self.issue(name, unit)
        return ClientAccess(ca=self.file, certificate=pair.certificate, key=pair.key, token_file=token_file)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, hosts: tuple[str, ...] = ()
    ) -> x509.Certificate:
        """Of a server or client at those hosts; of none: the authority's own."""
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=not hosts, path_length=None), critical=True)
        )
        if hosts:
            names = [_host(each) for each in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
