"""Tells when a deployment serves: each actor healthy, with a policy of the learner that runs now."""

from collections.abc import Mapping
from types import TracebackType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.access.client_access import ClientAccess
from turnwise_actor.access.server_access import AccessError

CALL_TIMEOUT_S = 2.0


class Readiness:
    """Asks the learner and the actors, as often as it is told to; keeps its channels between questions.

    Args:
        learner: Its HOST:PORT.
        access: What is brought to the learner.
        actors: Their HOST:PORTs.
        encrypted: The actors speak TLS. Whom they would trust is not known here, so the learner's word that
            they are connected and have a policy must do.
    """

    def __init__(
        self, learner: str, access: ClientAccess, actors: tuple[str, ...], encrypted: bool = False
    ) -> None:
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300)]
        self._learner = access.channel(learner, options)
        self._encrypted = encrypted
        self._actors = {actor: grpc.insecure_channel(actor, options=options) for actor in actors}

    def __enter__(self) -> "Readiness":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._learner.close()
        for channel in self._actors.values():
            channel.close()

    def missing(self, pids: Mapping[str, int | None]) -> str:
        """What is not ready yet, in a few words; empty when all is.

        Args:
            pids: The process that should be found at each actor's address: one that an earlier run
                left there does not count.
        """
        try:
            status = training_pb2_grpc.OperatorStub(self._learner).GetStatus(
                training_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S
            )
        except (grpc.RpcError, AccessError):
            return "the learner"
        if not status.trainer_alive:
            return "the trainer"
        generation = status.published.generation
        if generation == 0 or generation != status.trainer.policy_version.generation:
            return "the first policy"
        with_policy = {
            (actor.report.address, actor.report.pid)
            for actor in status.actors
            if actor.connected and actor.report.policy_version.generation == generation
        }
        waiting = [a for a, pid in pids.items() if (a, pid) not in with_policy or not self._healthy(a)]
        return "actor " + ", ".join(waiting) if waiting else ""

    def _healthy(self, actor: str) -> bool:
        if self._encrypted:
            return True
        try:
            reply = health_pb2_grpc.HealthStub(self._actors[actor]).Check(
                health_pb2.HealthCheckRequest(service="turnwise.v1.Dialogue"), timeout=CALL_TIMEOUT_S
            )
        except grpc.RpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
