"""Continuation tokens: sealed, so that any actor can go on with a dialogue that it has never seen.

token.proto tells the layout. The key id in the head is bound to the domain's name, so a token made for
another domain, or with keys that this actor does not have, is told apart from a forged one without
reading it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.message import DecodeError

from turnwise.v1 import token_pb2
from turnwise_actor.access.files import Followed, write_secret
from turnwise_actor.config import TokenConfig
from turnwise_actor.errors import TokenError
from turnwise_actor.facts import PackedFact
from turnwise_actor.parts import with_parts

FORMAT = 1
_HEAD = struct.Struct("<B4s12sB")
_TAG_BYTES = 16
_LOOK_INTERVAL_S = 1.0
_SPREAD_S = 60.0
"""From when an actor sees a new active key until it seals with it: the others can open it by then."""
_MAX_AGE_S = TokenConfig.max_age_s + TokenConfig.clock_leeway_s


class KeyFileError(ValueError):
    """The key file is missing or malformed; the message names the file and what is wanted."""


@dataclass(frozen=True)
class Key:
    """One secret of the key file, as one domain uses it."""

    name: str
    head_id: bytes
    secret: bytes
    cipher: AESGCM
    opens_until: float
    """Seconds since the epoch: a retired key opens nothing for longer than tokens may be old."""


class OpenedToken(NamedTuple):
    """A genuine token: what it says, and the key it was sealed with."""

    dialogue_id: str
    state: token_pb2.TokenState
    key: Key


class KeyRing:
    """The keys of one domain's actors; the file is followed, looked at about once a second.

    Raises on construction: KeyFileError.
    """

    def __init__(
        self,
        file: Path,
        domain_name: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now, self._clock = now, clock
        self._file = Followed(
            "token keys", [file], lambda: _read_keys(file, domain_name), _LOOK_INTERVAL_S, clock
        )
        self._sealing, _ = self._file.value
        self._next = self._sealing
        self._seen_at = clock()

    @property
    def active(self) -> Key:
        """The key that seals: the file's active one, after a minute in which the one before is still known.

        The file reaches other machines' actors a little sooner or later.
        """
        active, keys = self._file.latest()
        if active.head_id == self._sealing.head_id or self._sealing.head_id not in keys:
            self._sealing = self._next = active
        else:
            if active.head_id != self._next.head_id:
                self._next, self._seen_at = active, self._clock()
            if self._clock() - self._seen_at >= _SPREAD_S:
                self._sealing = active
        return self._sealing

    def find(self, head_id: bytes) -> Key | None:
        """The key of a token's head; an unknown id may be a key added just now, so the file is looked at."""
        _, keys = self._file.value
        if head_id not in keys and self._file.look():
            _, keys = self._file.value
        key = keys.get(head_id)
        return key if key is not None and self._now() < key.opens_until else None


class Tokens:
    """Seals and opens the tokens of one domain."""

    def __init__(self, keys: KeyRing, domain_name: str) -> None:
        self._keys = keys
        self._domain_name = domain_name.encode()

    @property
    def sealing_key(self) -> Key:
        """The key that seals now."""
        return self._keys.active

    def key_of(self, head_id: bytes) -> Key | None:
        """The key that a token's head names, if it may still open something."""
        return self._keys.find(head_id)

    def seal(
        self, dialogue_id: str, state: token_pb2.TokenState, unsettled: Sequence[PackedFact] = ()
    ) -> bytes:
        """Token for a dialogue id of at most 255 bytes, with these facts beside those of the state."""
        key = self._keys.active
        name = dialogue_id.encode()
        nonce = os.urandom(12)
        head = _HEAD.pack(FORMAT, key.head_id, nonce, len(name)) + name
        bodies = [fact.body for fact in unsettled]
        plain = with_parts(state, token_pb2.TokenState.UNSETTLED_FIELD_NUMBER, bodies)
        return head + key.cipher.encrypt(nonce, plain, head + self._domain_name)

    def open(self, token: bytes) -> OpenedToken:
        """What a genuine token says; raises TokenError for any other."""
        if len(token) < _HEAD.size + _TAG_BYTES or token[0] != FORMAT:
            raise _invalid(f"{len(token)} bytes that are no token")
        _, head_id, nonce, length = _HEAD.unpack_from(token)
        end = _HEAD.size + length
        key = self._keys.find(head_id)
        if key is None:
            raise TokenError(
                f"the token was made for another domain than {self._domain_name.decode()!r}, "
                "or with a key that this actor does not have",
                reason="TOKEN_FOREIGN",
            )
        try:
            plain = key.cipher.decrypt(nonce, token[end:], token[:end] + self._domain_name)
            return OpenedToken(token[_HEAD.size : end].decode(), token_pb2.TokenState.FromString(plain), key)
        except (InvalidTag, DecodeError, UnicodeDecodeError, ValueError) as error:
            raise _invalid("a token that was altered or forged") from error


def _invalid(got: str) -> TokenError:
    return TokenError(f"token: got {got}; wanted one from this dialogue's last reply", reason="TOKEN_INVALID")


def rotate_keys(file: Path, now: float | None = None) -> int:
    """Makes a new key the active one; returns how many of the older are kept.

    Those that were retired longer ago than tokens may be old are removed.

    Raises:
        KeyFileError: The file is missing or malformed.
    """
    _read_keys(file, "")
    content = json.loads(file.read_text())
    at = time.time() if now is None else now
    retired = {**content.get("retired", {}), content["active"]: at}
    kept = [name for name in content["keys"] if at < retired.get(name, at) + _MAX_AGE_S]
    name = secrets.token_hex(4)
    keys = {name: content["keys"][name] for name in kept}
    keys[name] = base64.b64encode(secrets.token_bytes(32)).decode()
    rotated = {"active": name, "keys": keys, "retired": {each: retired.get(each, at) for each in kept}}
    try:
        write_secret(file, json.dumps(rotated))
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be written ({error.strerror})") from error
    return len(kept)


def _read_keys(file: Path, domain_name: str) -> tuple[Key, dict[bytes, Key]]:
    wanted = 'wanted {"active": "ab12cd34", "keys": {"ab12cd34": "<base64 of 32 bytes>"}}'
    try:
        content = json.loads(file.read_text())
        retired = content.get("retired", {})
        keys = [
            _key(name, secret, domain_name, float(retired.get(name, math.inf)))
            for name, secret in content["keys"].items()
        ]
        active = next(key for key in keys if key.name == content["active"])
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be read ({error.strerror}); {wanted}") from error
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        # The error itself is left out: it may quote a secret.
        raise KeyFileError(f"{file}: malformed ({type(error).__name__}); {wanted}") from None
    return active, {key.head_id: key for key in keys}


def _key(name: str, secret_base64: str, domain_name: str, retired: float) -> Key:
    try:
        secret = base64.b64decode(secret_base64, validate=True)
        file_id = bytes.fromhex(name)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if len(secret) != 32 or len(file_id) != 4:
        raise ValueError("wrong size")
    head_id = hashlib.blake2b(domain_name.encode(), key=file_id, digest_size=4).digest()
    return Key(name, head_id, secret, AESGCM(secret), retired + _MAX_AGE_S)
