"""What a request can fail with: one exception, one gRPC status each, the same over unary calls and streams.

RequestError                    any refusal; carries code, message, reason, violations
├── BadRequestError             INVALID_ARGUMENT   fields are wrong: all of them are named at once
├── TokenError                  PERMISSION_DENIED  TOKEN_INVALID (forged, altered), TOKEN_FOREIGN
├── TeacherError                PERMISSION_DENIED  TEACHER_FOREIGN
├── PreconditionError           FAILED_PRECONDITION  TOKEN_EXPIRED, TOKEN_BRANCHES, DIALOGUE_FULL
├── UnavailableError            UNAVAILABLE        NO_POLICY, DRAINING, NOT_RECORDED: retry elsewhere
├── OverloadError               RESOURCE_EXHAUSTED TOO_MANY_IN_FLIGHT, RATE_LIMIT
├── DeadlineError               DEADLINE_EXCEEDED  the request's timeout_ms passed
└── InternalError               INTERNAL           a fault of ours, or the learner refused a fact
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from turnwise.v1 import status_pb2

ERROR_DOMAIN = "turnwise"
DETAILS_KEY = "grpc-status-details-bin"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Violation:
    """One wrong field: its path in the request, the value got, the values wanted."""

    field: str
    got: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.field}: got {self.got}; wanted {self.wanted}"


class RequestError(Exception):
    """A request that is refused, with everything its status says."""

    code = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, *, reason: str = "", violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.violations = tuple(violations)

    def to_status(self) -> status_pb2.Status:
        """The refusal as a google.rpc.Status, with its details packed."""
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        if self.violations:
            fields = [
                status_pb2.BadRequest.FieldViolation(
                    field=each.field, description=f"got {each.got}; wanted {each.wanted}"
                )
                for each in self.violations
            ]
            status.details.append(_packed("BadRequest", status_pb2.BadRequest(field_violations=fields)))
        if self.reason:
            info = status_pb2.ErrorInfo(reason=self.reason, domain=ERROR_DOMAIN)
            status.details.append(_packed("ErrorInfo", info))
        return status


class BadRequestError(RequestError):
    """Fields are wrong; do not retry."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__("; ".join(str(each) for each in violations), violations=violations)


class TokenError(RequestError):
    """The token is forged, altered, or was made for others."""

    code = grpc.StatusCode.PERMISSION_DENIED


class TeacherError(RequestError):
    """The caller may not give feedback in somebody else's name."""

    code = grpc.StatusCode.PERMISSION_DENIED


class PreconditionError(RequestError):
    """The request is well formed but comes too late."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class UnavailableError(RequestError):
    """Not now or not here; the same request may be retried."""

    code = grpc.StatusCode.UNAVAILABLE


class OverloadError(RequestError):
    """Too much is in flight on this stream, or came from this caller within a short time."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineError(RequestError):
    """The client's time for this request is over."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class InternalError(RequestError):
    """A fault that the client did not cause."""

    code = grpc.StatusCode.INTERNAL


def told(error: Exception) -> RequestError:
    """What the caller hears of an error; what is no RequestError is logged."""
    if isinstance(error, RequestError):
        return error
    logger.error("a request failed", exc_info=error)
    return InternalError("a fault of the actor; its log tells more")


def _packed(name: str, message: Message) -> Any:
    """`Any` under google.rpc's type URL: `Any.Pack` would write ours, which other clients do not know."""
    return Any(type_url=f"type.googleapis.com/google.rpc.{name}", value=message.SerializeToString())
