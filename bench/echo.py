"""What turns are held against: a bare grpc.aio server that answers bytes with so many bytes.

It parses nothing, so that it is the least that any server on grpc.aio can cost. `Converse` is a stream, `Act`
a lone call. Event loop and garbage collection are set as an actor sets them, gRPC's poller comes with the
environment (`turnwise_actor/__init__.py`). Prints its port; ends with its standard input.
"""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from turnwise_actor import event_loop

SERVICE = "bench.Echo"


async def serve(reply_bytes: int) -> None:
    """Until the standard input ends."""
    reply = bytes(reply_bytes)

    async def act(request: bytes, context: Any) -> bytes:
        return reply

    async def converse(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield reply

    handlers = {
        "Act": grpc.unary_unary_rpc_method_handler(act),
        "Converse": grpc.stream_stream_rpc_method_handler(converse),
    }
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    event_loop.run(serve(int(sys.argv[1])))
