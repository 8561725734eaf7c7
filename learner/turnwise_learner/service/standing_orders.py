"""What an operator has ordered until further notice: it outlives the trainer and the service."""

import json
import sqlite3
from dataclasses import asdict, dataclass, replace

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_learner.journal import read_meta
from turnwise_learner.service.journal import Journal, set_meta

_NAME = "standing_orders"


@dataclass(frozen=True)
class _Orders:
    paused: bool = False
    teach_epsilon: float | None = None
    serve_epsilon: float | None = None
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
        """Keeps an order on exploration."""
        if request.mode == dialogue_pb2.TEACH:
            await self._keep(replace(self._orders, teach_epsilon=request.epsilon))
        else:
            await self._keep(replace(self._orders, serve_epsilon=request.epsilon))

    def commands(self) -> list[training_pb2.TrainerCommand]:
        """What to tell a trainer that begins; without ids."""
        commands = [training_pb2.TrainerCommand(pause=True)] if self._orders.paused else []
        by_mode = (
            (dialogue_pb2.TEACH, self._orders.teach_epsilon),
            (dialogue_pb2.SERVE, self._orders.serve_epsilon),
        )
        for mode, epsilon in by_mode:
            if epsilon is not None:
                request = training_pb2.SetExplorationRequest(mode=mode, epsilon=epsilon)
                commands.append(training_pb2.TrainerCommand(set_exploration=request))
        return commands

    async def _keep(self, orders: _Orders) -> None:
        self._orders = orders
        text = json.dumps(asdict(orders))

        def write(connection: sqlite3.Connection) -> None:
            set_meta(connection, _NAME, text)

        await self._journal.submit(write)
