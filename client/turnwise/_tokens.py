"""Continuation tokens, as far as a client reads them: their text, and the dialogue that they name.

The layout is in token.proto. Only actors can tell whether a token is genuine.
"""

import base64
import binascii
import struct

from turnwise._errors import TokenRejected

_FORMAT = 1
_HEAD = struct.Struct("<B4s12sB")
_TAG_BYTES = 16
_MAX_BYTES = 64 * 1024


def token_to_str(token: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode("ascii")


def token_from_str(text: object) -> tuple[bytes, str]:
    """The token's bytes and the dialogue it names.

    Raises:
        TokenRejected: This is no token: malformed, cut, or altered in its head.
    """
    if not isinstance(text, str):
        raise TokenRejected(f"token is a {type(text).__name__}; wanted the str that `dialogue.token` gave")
    try:
        token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenRejected(f"token is not base64url: {error}") from None
    if len(token) > _MAX_BYTES:
        raise TokenRejected(f"token has {len(token)} bytes; wanted at most {_MAX_BYTES}")
    if len(token) < _HEAD.size:
        raise TokenRejected(f"token has {len(token)} bytes, less than its head; was it cut?")
    version, _key, _nonce, size = _HEAD.unpack_from(token)
    if version != _FORMAT:
        raise TokenRejected(f"token has format {version}; this SDK knows {_FORMAT}")
    end = _HEAD.size + size
    if not size or len(token) < end + _TAG_BYTES:
        raise TokenRejected(f"token of {len(token)} bytes does not hold what its head says; was it cut?")
    try:
        return token, token[_HEAD.size : end].decode()
    except UnicodeDecodeError:
        raise TokenRejected("the dialogue id in the token is not UTF-8") from None
