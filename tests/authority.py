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


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates for names at this machine's loopback address."""

    def __init__(self, folder: Path, name: str = "test ca") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "ca.pem"
        self.file.write_bytes(_pem(self._sign(self._name, self._key, is_ca=True)))

    def issue(self, name: str, unit: str = "", *, file: str = "") -> Pair:
        """A certificate of that common name; `unit` is its organizational unit."""
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if unit:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
        file = file or name
        pair = Pair(self._folder / f"{file}.pem", self._folder / f"{file}.key")
        pair.certificate.write_bytes(_pem(self._sign(x509.Name(attributes), key, is_ca=False)))
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

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, is_ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if not is_ca:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
