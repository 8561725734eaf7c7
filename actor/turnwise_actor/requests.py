"""How requests are read: plain ones by the compiled turn path, where there is one, the others by protobuf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from turnwise.v1 import dialogue_pb2
from turnwise_actor.compiled import compiled

TURNS = compiled("turns")
_SERVICE = dialogue_pb2.DESCRIPTOR.services_by_name["Dialogue"].full_name
CONVERSE = f"/{_SERVICE}/Converse"


class PlainAct(Protocol):
    """A request for a turn, read by `compiled.turns`. A lone one has no id and no timeout."""

    correlation_id: int
    timeout_ms: int

    def message(self) -> dialogue_pb2.ActRequest:
        """The same as protobuf has it."""
        ...

    def reply(self, turn: bytes) -> bytes:
        """What answers it, a Turn or on a stream a ConverseReply, given the Turn; all of it serialized."""
        ...


Act: TypeAlias = dialogue_pb2.ActRequest | PlainAct


def read_act(content: bytes) -> Act:
    """Raises DecodeError: the bytes are no ActRequest."""
    act: PlainAct | None = TURNS.read_act(content) if TURNS is not None else None
    return dialogue_pb2.ActRequest.FromString(content) if act is None else act


def read_converse(content: bytes) -> dialogue_pb2.ConverseRequest | list[PlainAct]:
    """The requests of a message, if all of them are plain. Raises DecodeError: it is no ConverseRequest."""
    acts: list[PlainAct] | None = TURNS.read_converse(content) if TURNS is not None else None
    return dialogue_pb2.ConverseRequest.FromString(content) if acts is None else acts


READERS: Mapping[str, Callable[[bytes], Any]] = {f"/{_SERVICE}/Act": read_act, CONVERSE: bytes}
"""By method; a conversation reads its messages itself, the other methods' are read by protobuf alone."""
