"""A gRPC server on HTTP/2 of its own: nghttp2 and an event loop, with what servicers know from `grpc.aio`.

A message costs `grpc.aio` two to three times what a turn costs the actor; here it costs a fraction of one.
Where `compiled.http2` was not built, `grpc.aio` serves the same servicers.
"""

from __future__ import annotations

from turnwise_actor.compiled import compiled

HTTP2 = compiled("http2")
