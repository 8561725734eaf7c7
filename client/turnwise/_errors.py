"""Every error the SDK raises, one tree, named for what the caller can do.

    TurnwiseError
    ├── InvalidRequest (ValueError)     correct the arguments; see `.violations`
    ├── TokenError                      begin another dialogue
    │   ├── TokenRejected               forged, altered, malformed, or of another installation
    │   └── TokenExpired                older than the age limit
    ├── DialogueEnded                   begin another dialogue: this one has ended, or is full
    ├── NotReady                        the server's state forbids it now; the message says which
    ├── AccessDenied                    present other credentials
    ├── Overloaded                      send less, or later
    ├── ActorUnavailable                retry later, or fall back to an answer of your own
    ├── DeadlineExceeded (TimeoutError) retry, or allow more time
    ├── NotFound                        name something that exists
    ├── Conflict                        look at what is there, then retry
    ├── NotSupported                    upgrade the server, or do without
    ├── ServerFault                     report it: a bug or damage at the server
    ├── UnexpectedReply                 report it: the server speaks another version
    ├── Cancelled                       somebody cancelled the call
    └── ClientClosed                    this client was closed: make another

The SDK has retried by itself, until the deadline, what may be retried.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from turnwise.v1 import status_pb2

DETAILS_KEY = "grpc-status-details-bin"
_BAD_REQUEST = "google.rpc.BadRequest"
_ERROR_INFO = "google.rpc.ErrorInfo"


class Violation(NamedTuple):
    """One field that is wrong: its path in the request, what it held and what is wanted."""

    field: str
    description: str


class TurnwiseError(Exception):
    """Root of all errors of this SDK.

    Attributes:
        message: What happened, for people.
        code: The gRPC status behind it; None when it was found before anything was sent.
        reason: The server's name for the cause, such as `TOKEN_EXPIRED` or `NO_POLICY`; may be empty.
    """

    def __init__(self, message: str, *, code: grpc.StatusCode | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        cause = " ".join(part for part in (self.code.name if self.code else "", self.reason) if part)
        return f"{self.message} ({cause})" if cause else self.message


class InvalidRequest(TurnwiseError, ValueError):
    """A field of the request is wrong; sending it again will not help.

    Attributes:
        violations: Every field that is wrong, each with what it held and what is wanted.
    """

    def __init__(
        self,
        message: str,
        violations: Sequence[Violation] = (),
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message, code=code, reason=reason)
        self.violations = tuple(violations)

    def __str__(self) -> str:
        listed = "; ".join(f"{field}: {description}" for field, description in self.violations)
        return f"{super().__str__()}: {listed}" if listed else super().__str__()


class TokenError(TurnwiseError):
    """The dialogue cannot go on from this token; begin another."""


class TokenRejected(TokenError):
    """The token is malformed, forged, altered, or belongs to another installation."""


class TokenExpired(TokenError):
    """The token is older than the age limit; feedback on its turns is still taken."""


class DialogueEnded(TurnwiseError):
    """The dialogue has ended and takes no more turns; feedback on its turns is still taken."""


class NotReady(TurnwiseError):
    """The server's state forbids this now; the message says what has to change first."""


class AccessDenied(TurnwiseError):
    """The credentials are missing or do not allow this."""


class Overloaded(TurnwiseError):
    """Over a limit of the server: too many requests in flight, or too large a message."""


class ActorUnavailable(TurnwiseError):
    """No actor answered until the deadline: retry later, or fall back to an answer of your own."""


class DeadlineExceeded(TurnwiseError, TimeoutError):
    """The deadline passed without an answer; what was sent may still be carried out."""


class NotFound(TurnwiseError):
    """What the request names does not exist."""


class Conflict(TurnwiseError):
    """Something of that name exists already, or somebody else changed it meanwhile."""


class NotSupported(TurnwiseError):
    """The server does not know this call; it is older than this SDK."""


class ServerFault(TurnwiseError):
    """A bug or damage at the server."""


class UnexpectedReply(TurnwiseError):
    """The server answered something that this version of the SDK cannot read."""


class Cancelled(TurnwiseError):
    """The call was cancelled."""


class ClientClosed(TurnwiseError):
    """The client was closed before or during the call."""


_BY_CODE: Mapping[grpc.StatusCode, type[TurnwiseError]] = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNKNOWN: ServerFault,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: NotReady,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
    grpc.StatusCode.INTERNAL: ServerFault,
    grpc.StatusCode.UNAVAILABLE: ActorUnavailable,
    grpc.StatusCode.DATA_LOSS: ServerFault,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
}

# Reasons that tell apart causes sharing a status; the others keep the class of their status.
_BY_REASON: Mapping[str, type[TurnwiseError]] = {
    "TOKEN_INVALID": TokenRejected,
    "TOKEN_FOREIGN": TokenRejected,
    "TOKEN_EXPIRED": TokenExpired,
    "DIALOGUE_ENDED": DialogueEnded,
    "DIALOGUE_FULL": DialogueEnded,
}

_BY_NUMBER: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def error_from_status(status: status_pb2.Status) -> TurnwiseError:
    """The error that a status says; a status of an unknown code is read as UNKNOWN, as gRPC asks.

    Raises:
        ValueError: The status is OK.
    """
    code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    if code is grpc.StatusCode.OK:
        raise ValueError("status OK is not an error")
    violations, reason = _read_details(status)
    kind = _BY_REASON.get(reason, _BY_CODE[code])
    message = status.message or code.value[1]
    if issubclass(kind, InvalidRequest):
        return kind(message, violations, code=code, reason=reason)
    return kind(message, code=code, reason=reason)


def error_from_rpc(error: grpc.RpcError) -> TurnwiseError:
    """The error that a failed gRPC call says, of either twin and of any Turnwise service."""
    code = error.code() or grpc.StatusCode.UNKNOWN
    fallback = status_pb2.Status(code=code.value[0], message=error.details() or "")
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break  # a proxy's, perhaps; the plain status still says what happened
            return error_from_status(status if status.code == fallback.code else fallback)
    return error_from_status(fallback)


def invalid(field: str, got: object, wanted: str) -> InvalidRequest:
    """An argument found wrong before anything is sent."""
    violation = Violation(field, f"got {shown(got)}; wanted {wanted}")
    return InvalidRequest("invalid argument", [violation])


def shown(value: object) -> str:
    """A value as an error message shows it: its repr, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_details(status: status_pb2.Status) -> tuple[list[Violation], str]:
    violations: list[Violation] = []
    reason = ""
    for detail in status.details:
        kind = detail.type_url.rpartition("/")[2]
        try:
            if kind == _BAD_REQUEST:
                found = status_pb2.BadRequest.FromString(detail.value).field_violations
                violations += [Violation(each.field, each.description) for each in found]
            elif kind == _ERROR_INFO:
                reason = status_pb2.ErrorInfo.FromString(detail.value).reason
        except DecodeError:
            continue  # a detail we cannot read takes nothing from what the status says
    return violations, reason
