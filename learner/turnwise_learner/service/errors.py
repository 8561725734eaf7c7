"""How the learner's services report errors: a status code, a message for people, details for programs."""

from types import TracebackType
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf import any_pb2

from turnwise.v1 import status_pb2
from turnwise_learner.journal import JournalError

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_BAD_REQUEST_URL = "type.googleapis.com/google.rpc.BadRequest"
_DETAILS_KEY = "grpc-status-details-bin"


class RefusedError(Exception):
    """A call that ends with a status other than OK."""

    def __init__(self, code: grpc.StatusCode, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        """INVALID_ARGUMENT: path of the wrong field in the request."""

    async def abort(self, context: Context) -> NoReturn:
        """Ends the call with this status."""
        metadata = ((_DETAILS_KEY, self._details()),) if self.field else ()
        await context.abort(self.code, self.message, metadata)
        raise AssertionError("abort raises")

    def _details(self) -> bytes:
        violation = status_pb2.BadRequest.FieldViolation(field=self.field, description=self.message)
        bad_request = status_pb2.BadRequest(field_violations=[violation]).SerializeToString()
        detail = any_pb2.Any(type_url=_BAD_REQUEST_URL, value=bad_request)
        code: int = self.code.value[0]
        return status_pb2.Status(code=code, message=self.message, details=[detail]).SerializeToString()


def invalid(field: str, got: object, wanted: str) -> RefusedError:
    """INVALID_ARGUMENT for one field."""
    return RefusedError(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: got {got}; wanted {wanted}", field)


def unavailable(message: str) -> RefusedError:
    """UNAVAILABLE: the same call may succeed later."""
    return RefusedError(grpc.StatusCode.UNAVAILABLE, message)


class Answering:
    """Around the answering of a call: what is refused inside ends the call with its status.

    A journal that cannot commit or be read makes the call UNAVAILABLE.
    """

    def __init__(self, context: object) -> None:
        self._call = cast(Context, context)

    async def __aenter__(self) -> Context:
        return self._call

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, JournalError):
            error = unavailable(str(error))
        if isinstance(error, RefusedError):
            await error.abort(self._call)
