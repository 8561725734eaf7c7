"""What an operator has ordered until further notice: it outlives the trainer and the service."""

import json
import sqlite3
from dataclasses import asdict, dataclass, replace
from typing import Any

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_learner.journal import read_meta
from turnwise_learner.service.journal import Journal, set_meta

EXPLORATION_PARTS = ("epsilon", "kind", "temperature")
"""What a SetExplorationRequest may say of a mode."""

_NAME = "standing_orders"
_MODES = (dialogue_pb2.TEACH, dialogue_pb2.SERVE)
_KINDS = training_pb2.Exploration.Kind


@dataclass(frozen=True)
class _Orders:
    paused: bool = False
    teach_epsilon: float | None = None
    serve_epsilon: float | None = None
    teach_kind: str | None = None
    serve_kind: str | None = None
    teach_temperature: float | None = None
    serve_temperature: float | None = None
    """None: the trainer's own."""


class StandingOrders:
    """Pause and exploration as last ordered; told to every trainer that begins."""

    def __init__(self, journal: Journal, orders: _Orders) -> None:
        self._journal = journal
        self._orders = orders

    @classmethod
    async def load(cls, journal: Journal) -> "StandingOrders":
        """The orders that the journal keeps."""
        meta = await journal.submit(read_meta)
        return cls(journal, _Orders(**json.loads(meta.get(_NAME, "{}"))))

    async def pause(self, paused: bool) -> None:
        """Keeps an order to pause, or takes it back."""
        await self._keep(replace(self._orders, paused=paused))

    async def explore(self, request: training_pb2.SetExplorationRequest) -> None:
        """Keeps an order on exploration: what it gives, beside what was ordered before."""
        given = exploration_given(request)
        if "kind" in given:
            given["kind"] = _KINDS.Name(request.kind)
        mode = _prefix(request.mode)
        await self._keep(replace(self._orders, **{mode + name: value for name, value in given.items()}))

    @property
    def paused(self) -> bool:
        """Whether nothing is to be learned."""
        return self._orders.paused

    @property
    def exploration(self) -> list[training_pb2.SetExplorationRequest]:
        """What was ordered of each mode."""
        return [request for mode in _MODES if exploration_given(request := self._request(mode))]

    def _request(self, mode: dialogue_pb2.Mode.ValueType) -> training_pb2.SetExplorationRequest:
        parts = {name: getattr(self._orders, _prefix(mode) + name) for name in EXPLORATION_PARTS}
        # None leaves a field unset; an enum is given by its name.
        return training_pb2.SetExplorationRequest(mode=mode, **parts)

    async def _keep(self, orders: _Orders) -> None:
        self._orders = orders
        text = json.dumps(asdict(orders))

        def write(connection: sqlite3.Connection) -> None:
            set_meta(connection, _NAME, text)

        await self._journal.submit(write)


def exploration_given(request: training_pb2.SetExplorationRequest) -> dict[str, Any]:
    """What a request says of its mode; zeros that were given, too."""
    return {field.name: value for field, value in request.ListFields() if field.name in EXPLORATION_PARTS}


def _prefix(mode: dialogue_pb2.Mode.ValueType) -> str:
    return dialogue_pb2.Mode.Name(mode).lower() + "_"
