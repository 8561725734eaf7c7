"""Who may call: names, roles, and the digests of bearer tokens, from a file that may change at any time.

    {"rate": 2000,
     "credentials": [{"name": "web", "roles": ["frontend"], "sha256": "<64 hex digits>",
                      "expires": "2027-01-31T12:00:00+00:00", "rate": 500},
                     {"name": "actor-7.example.org", "roles": ["actor"]}]}

An entry without `sha256` is reached by a client certificate of that name alone. `expires` and `rate`
(requests a second) may be left out. A name may have several entries: the old token and the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from turnwise_actor.access.files import Followed, write_secret

CREDENTIALS = Path("keys", "credentials.json")
"""Where a data folder has its credential file."""
ROLES = ("frontend", "teacher", "actor", "operator")
DEFAULT_RATE = 2000.0
"""Requests a second of one name at one actor."""

_BURST_S = 2.0
_LOOK_INTERVAL_S = 1.0
_TOKEN_PREFIX = "tw_"  # lets scanners for leaked secrets know it
_MAX_NAME_BYTES = 128

logger = logging.getLogger(__name__)


class CredentialFileError(ValueError):
    """The credential file is missing or malformed; the message names the file and what is wanted."""


class Bucket:
    """Lets `rate` requests a second pass, and two seconds' worth of them at once."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._level = self._full()
        self._at = clock()

    def take(self, wanted: int = 1) -> int:
        """How many of so many further requests may pass now."""
        now = self._clock()
        self._level = min(self._full(), self._level + (now - self._at) * self.rate)
        self._at = now
        passed = int(min(wanted, self._level))
        self._level -= passed
        return passed

    def _full(self) -> float:
        return max(1.0, _BURST_S * self.rate)


@dataclass(frozen=True)
class Principal:
    """Somebody who may call: one entry of the file, or the holder of a client certificate."""

    name: str
    roles: frozenset[str]
    sha256: bytes = field(default=b"", repr=False)
    """Of the bearer token; empty: none."""
    expires: float = math.inf
    """Seconds since the epoch."""
    bucket: Bucket = field(default_factory=lambda: Bucket(DEFAULT_RATE), compare=False, repr=False)
    """Shared by all entries of the name."""

    @property
    def speaks_for_others(self) -> bool:
        """Whether it may name the teacher of a feedback: a frontend speaks for its users."""
        return "frontend" in self.roles

    @property
    def id(self) -> str:
        """Tells the entries of one name apart, without telling the token."""
        return self.sha256.hex()[:8] or "certificate"


class Credentials:
    """The principals of a file that is followed, looked at about once a second.

    Raises on construction: CredentialFileError.
    """

    def __init__(
        self,
        file: Path,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._buckets: dict[str, Bucket] = {}
        self._file = Followed(
            "credentials", [file], lambda: self._shared(read_credentials(file)), _LOOK_INTERVAL_S, clock
        )

    def by_token(self, token: str) -> Principal | None:
        """The one whose token this is; compared in constant time with every digest."""
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for principal in self._file.latest():
            if hmac.compare_digest(principal.sha256, digest):
                found = principal
        return self._in_force(found)

    def by_certificate(self, names: Iterable[str]) -> Principal | None:
        """The one whom a verified certificate names."""
        wanted = set(names)
        named = (each for each in self._file.latest() if each.name in wanted)
        return next((each for each in named if self._in_force(each)), None)

    def still_holds(self, principal: Principal) -> bool:
        """Whether one found earlier is in the file as it was, and has not expired."""
        return principal in self._file.latest() and self._in_force(principal) is not None

    def _in_force(self, principal: Principal | None) -> Principal | None:
        return principal if principal is not None and self._now() < principal.expires else None

    def _shared(self, principals: Sequence[Principal]) -> tuple[Principal, ...]:
        """The same principals, with the bucket that their name has had so far."""
        shared = []
        for each in principals:
            bucket = self._buckets.setdefault(each.name, each.bucket)
            bucket.rate = each.bucket.rate
            shared.append(replace(each, bucket=bucket))
        return tuple(shared)


def read_credentials(file: Path) -> tuple[Principal, ...]:
    """The entries of a file. Raises CredentialFileError."""
    return tuple(_principal(file, entry, rate) for entry, rate in _entries(file))


def add_credential(
    file: Path, name: str, roles: Sequence[str], expires: datetime | None = None, rate: float | None = None
) -> str:
    """Adds an entry and returns its token, which is kept nowhere else.

    Raises:
        CredentialFileError: The file is malformed, or the entry would be.
    """
    token = _TOKEN_PREFIX + secrets.token_urlsafe(32)
    entry: dict[str, Any] = {"name": name, "roles": list(dict.fromkeys(roles)), "sha256": _digest(token)}
    if expires is not None:
        entry["expires"] = expires.astimezone(timezone.utc).isoformat()
    if rate is not None:
        entry["rate"] = rate
    _principal(file, entry, DEFAULT_RATE)
    with _changed(file) as content:
        content["credentials"].append(entry)
    return token


def add_certificate(file: Path, name: str, roles: Sequence[str]) -> None:
    """Adds an entry for the holder of a client certificate of that name. Raises CredentialFileError."""
    entry = {"name": name, "roles": list(dict.fromkeys(roles))}
    _principal(file, entry, DEFAULT_RATE)
    with _changed(file) as content:
        content["credentials"].append(entry)


def revoke_credentials(file: Path, name_or_id: str) -> int:
    """Removes all entries of a name, or the one of an id; returns how many. Raises CredentialFileError."""
    gone = {
        index
        for index, each in enumerate(read_credentials(file))
        if name_or_id == each.name or (each.sha256 and name_or_id == each.id)
    }
    if gone:
        with _changed(file) as content:
            entries = content["credentials"]
            content["credentials"] = [each for index, each in enumerate(entries) if index not in gone]
    return len(gone)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@contextmanager
def _changed(file: Path) -> Iterator[dict[str, Any]]:
    """The content of the file, made if missing, to be changed and written back; one writer at a time."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(file.with_name(f".{file.name}.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            read_credentials(file)
            content = json.loads(file.read_text())
        else:
            content = {"credentials": []}
        yield content
        write_secret(file, json.dumps(content, indent=2) + "\n")


def _entries(file: Path) -> list[tuple[dict[str, Any], float]]:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise CredentialFileError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CredentialFileError(f"{file}: is no JSON ({type(error).__name__})") from None
    if not isinstance(content, dict) or not isinstance(content.get("credentials"), list):
        raise CredentialFileError(f'{file}: wanted {{"credentials": [{{"name": …, "roles": […]}}, …]}}')
    _refuse_unknown(file, content, ("credentials", "rate"))
    rate = _rate(file, content.get("rate", DEFAULT_RATE))
    return [(entry, rate) for entry in content["credentials"]]


def _principal(file: Path, entry: object, rate: float) -> Principal:
    """One entry, checked. What is wrong is not quoted where it may be a secret."""
    if not isinstance(entry, dict):
        raise CredentialFileError(f"{file}: an entry is no object")
    _refuse_unknown(file, entry, ("name", "roles", "sha256", "expires", "rate"))
    name, roles = entry.get("name"), entry.get("roles")
    if not isinstance(name, str) or not 1 <= len(name.encode()) <= _MAX_NAME_BYTES or not name.isprintable():
        raise CredentialFileError(f"{file}: name: wanted 1 to {_MAX_NAME_BYTES} bytes that can be printed")
    if not isinstance(roles, list) or not roles or not all(role in ROLES for role in roles):
        raise CredentialFileError(f"{file}: {name}: roles: got {roles!r}; wanted some of {', '.join(ROLES)}")
    return Principal(
        name=name,
        roles=frozenset(roles),
        sha256=_sha256(file, name, entry.get("sha256")),
        expires=_expiry(file, name, entry.get("expires")),
        bucket=Bucket(_rate(file, entry.get("rate", rate))),
    )


def _refuse_unknown(file: Path, given: dict[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise CredentialFileError(f"{file}: got {', '.join(unknown)}; wanted {', '.join(known)}")


def _sha256(file: Path, name: str, value: object) -> bytes:
    if value is None:
        return b""
    try:
        digest = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise CredentialFileError(f"{file}: {name}: sha256: wanted 64 hex digits, the token's SHA-256")
    return digest


def _expiry(file: Path, name: str, value: object) -> float:
    if value is None:
        return math.inf
    try:
        moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError as error:
        wanted = "a time such as 2027-01-31T12:00:00+00:00"
        raise CredentialFileError(f"{file}: {name}: expires: got {value!r}; wanted {wanted}") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _rate(file: Path, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise CredentialFileError(f"{file}: rate: got {value!r}; wanted requests a second, above 0")
