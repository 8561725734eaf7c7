"""gRPC method handlers, taken apart and put together again: what interceptors do with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Any]
Read = Callable[[bytes], Any]
Write = Callable[[Any], bytes]


def behaviour_of(handler: Any) -> Behaviour:
    """What answers the method's calls."""
    found: Behaviour = getattr(handler, _kind(handler))
    return found


def rebuilt(handler: Any, behaviour: Behaviour, read: Read | None = None, write: Write | None = None) -> Any:
    """The same method with another behaviour, and other ways to read requests and write replies if given."""
    make = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    return make(behaviour, read or handler.request_deserializer, write or handler.response_serializer)


async def drive(answering: Any, context: Context) -> None:
    """Runs a stream's behaviour, written either way that grpc.aio allows."""
    if inspect.isasyncgen(answering):
        async for reply in answering:
            await context.write(reply)
    else:
        await answering


def _kind(handler: Any) -> str:
    request = "stream" if handler.request_streaming else "unary"
    return f"{request}_{'stream' if handler.response_streaming else 'unary'}"
