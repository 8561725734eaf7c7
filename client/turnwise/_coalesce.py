"""Requests that are to be sent at the same time go in one message: it costs the actor more than a turn."""

from collections.abc import Iterable, Iterator

from turnwise.v1 import dialogue_pb2 as pb

MOST_REQUESTS = 64
MOST_BYTES = 1 << 20


def coalesced(requests: Iterable[pb.ConverseRequest]) -> Iterator[pb.ConverseRequest]:
    """Messages with all the requests, in their order; the first of each carries the others."""
    message, size = None, 0
    for request in requests:
        added = request.ByteSize()
        if message is not None and len(message.also) + 1 < MOST_REQUESTS and size + added <= MOST_BYTES:
            message.also.append(request)
            size += added
            continue
        if message is not None:
            yield message
        message, size = request, added
    if message is not None:
        yield message
