"""Registry service: tells clients where the actors are."""

from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_learner.service.actors import Actors
from turnwise_learner.service.errors import Answering, unavailable
from turnwise_learner.service.training import STOPPING


class RegistryServicer(training_pb2_grpc.RegistryServicer):
    """Answers frontends."""

    def __init__(self, actors: Actors) -> None:
        self._actors = actors

    async def WatchActors(self, request: training_pb2.WatchActorsRequest, context: object) -> None:  # type: ignore[override]
        """See training.proto."""
        async with Answering(context) as call:
            async for listed in self._actors.lists():
                await call.write(listed)
            raise unavailable(STOPPING)
