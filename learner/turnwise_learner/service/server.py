"""Puts the parts of the service together, and takes them apart in order."""

import asyncio
import logging
import math
import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from turnwise.v1 import dialogue_pb2, training_pb2, training_pb2_grpc
from turnwise_actor.access.files import write_secret
from turnwise_actor.access.guard import Guard, Local, callers_of
from turnwise_actor.access.server_access import ServerAccess
from turnwise_actor.access.unreadable import UnreadableRequests
from turnwise_actor.http2 import HTTP2
from turnwise_actor.http2.server import Server, bind, new_server
from turnwise_actor.policy import Domain
from turnwise_learner.journal import journal_path
from turnwise_learner.service import versions
from turnwise_learner.service.actors import Actors
from turnwise_learner.service.broadcast import Broadcast, PolicyOnAir, newest_policy
from turnwise_learner.service.config import ServiceConfig
from turnwise_learner.service.journal import Journal, JournalLock
from turnwise_learner.service.operator import OperatorServicer
from turnwise_learner.service.registry import RegistryServicer
from turnwise_learner.service.standing_orders import StandingOrders
from turnwise_learner.service.supervisor import Supervisor
from turnwise_learner.service.trainer_link import TrainerLink, TrainerServicer
from turnwise_learner.service.training import TrainingServicer

if TYPE_CHECKING:
    from turnwise_actor.metrics_server import MetricsServer
    from turnwise_learner.store.shipping import Shipping

log = logging.getLogger(__name__)

_SERVICES = tuple(
    training_pb2.DESCRIPTOR.services_by_name[name].full_name for name in ("Training", "Operator", "Registry")
)
_LAST_CALLS_S = 0.5
"""Time for calls in flight, once the trainer has ended."""
_ONE_REQUEST_S = 1.0
"""Signals closer than this ask once: the kernel sends one for each thread of a parent that was killed."""
_SILENCE_S = 10
"""Of an actor's or trainer's machine, until it is asked whether it is still there."""
_OPTIONS = (
    ("grpc.keepalive_time_ms", 1_000 * _SILENCE_S),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


class Service:
    """The learner's service process: started once, stopped once.

    It has two doors. Actors and operators come in at `address`, as `config.access` says. The trainer comes in
    at `local_address`, and so may other processes of this machine that can read the data folder.

    Life: `start` opens the journal, listens, starts the trainer child. `stop` takes no more facts, lets the
    trainer end while its last messages are still heard, then ends the remaining calls and closes the journal.


    Raises on construction: CredentialFileError.
    """

    def __init__(
        self,
        config: ServiceConfig,
        domain: Domain,
        journal: Journal,
        orders: StandingOrders,
        shipping: "Shipping | None" = None,
    ) -> None:
        self._config = config
        self._domain = domain
        self._shipping = shipping
        self.journal = journal
        self.broadcast = Broadcast()
        self.address = ""
        """HOST:PORT, once it listens."""
        self.local_address = ""
        """HOST:PORT of the local door."""
        self._actors = Actors()
        self._link = TrainerLink(journal, self.broadcast, config.policies, orders)
        self._training = TrainingServicer(journal, self.broadcast, self._actors, domain.fingerprint)
        self._operator = OperatorServicer(
            domain,
            journal,
            self.broadcast,
            self._actors,
            self._link,
            orders,
            self._trainer_restarts,
            self._store_status,
            config.command_timeout_s,
        )
        self._metrics: MetricsServer | None = None
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._local_token = secrets.token_urlsafe(32)
        self._local_guard = Guard(Local(self._local_token))
        callers = callers_of(config.access)
        self._guard = None if callers is None else Guard(callers)
        guards = () if self._guard is None else (self._guard,)
        self._server = self._new_server(*guards)
        self._local_server = self._new_server(self._local_guard)
        self._watching: asyncio.Task[None] | None = None
        self.supervisor: Supervisor | None = None
        """Set while a trainer child is kept."""

    @property
    def metrics_address(self) -> str:
        """HOST:PORT of the metrics, once it listens; empty: they are served nowhere."""
        return self._metrics.address if self._metrics is not None else ""

    async def start(self) -> None:
        """Listens, then starts the trainer.

        Raises:
            OSError: The address cannot be listened on.
            AccessError: A certificate or key is wrong.
        """
        await self._recall()
        self._register()
        try:
            port = _bind(self._server, self._config.access, self._config.listen)
            self.address = self._config.address(port)
            self.local_address = self._bind_local()
            if self._config.metrics_listen is not None:
                await self._serve_metrics(self._config.metrics_listen)
        except (OSError, ValueError):
            await self._end_calls(0.0)
            raise
        await self._server.start()
        await self._local_server.start()
        if self._guard is not None:
            self._watching = asyncio.create_task(self._guard.watch(), name="guard")
        for name in ("", *_SERVICES):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        write_secret(self._config.local_token, self._local_token)
        _replace(self._config.data / "learner.local", self.local_address)
        _replace(self._config.data / "learner.address", self.address)
        log.info(
            "listening on %s, journal at %d; calls are taken by %s",
            self.address,
            self.journal.last_cursor,
            "grpc.aio: HTTP/2 is not compiled here" if HTTP2 is None else "HTTP/2 of its own",
        )
        if self._config.start_trainer:
            self.supervisor = self._supervise()
            self.supervisor.start()

    async def _serve_metrics(self, address: str) -> None:
        # Imported where it is wanted, as in an actor.
        from turnwise_actor.metrics_server import MetricsServer
        from turnwise_learner.service.metrics import LearnerMetrics

        self._metrics = MetricsServer(LearnerMetrics(self._operator.status, self._config.data))
        await self._metrics.start(address)
        log.info("metrics are at http://%s/metrics", self.metrics_address)

    async def stop(self) -> None:
        """Ends everything but the journal, in order; see the class."""
        log.info("stopping: facts are no longer taken")
        await self._health.enter_graceful_shutdown()
        self._actors.close()
        self._training.drain()
        if self.supervisor is not None:
            await self.supervisor.stop()
        self.broadcast.close()
        await self._end_calls(_LAST_CALLS_S)
        if self._metrics is not None:
            await self._metrics.stop()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for name in ("learner.address", "learner.local"):
            (self._config.data / name).unlink(missing_ok=True)

    async def _end_calls(self, grace_s: float) -> None:
        await asyncio.gather(self._server.stop(grace_s), self._local_server.stop(grace_s))

    async def _recall(self) -> None:
        """Puts the newest policy on air, and records what a killed service could not."""
        found = newest_policy(self._config.policies, self._domain.fingerprint)
        if found is not None:
            path, policy = found
            self.broadcast.put(PolicyOnAir(policy.version, policy.learned_through, path))
            version = dialogue_pb2.PolicyVersion(
                generation=policy.version.generation, number=policy.version.number
            )
            published = training_pb2.PolicyPublished(
                version=version,
                learned_through=policy.learned_through,
                updates=policy.updates,
                file=path.name,
            )
            await self.journal.submit(lambda c: versions.add_version(c, published))
        for manifest in (self._config.data / "checkpoints").glob(f"*/{versions.MANIFEST}"):
            await self._recall_checkpoint(manifest.parent)

    async def _recall_checkpoint(self, folder: Path) -> None:
        held = versions.version_held(folder)
        if held is not None:
            await self.journal.submit(lambda c: versions.add_checkpoint(c, held, str(folder)))

    def _register(self) -> None:
        for server in (self._server, self._local_server):
            training_pb2_grpc.add_TrainingServicer_to_server(self._training, server)
            training_pb2_grpc.add_OperatorServicer_to_server(self._operator, server)
            training_pb2_grpc.add_RegistryServicer_to_server(RegistryServicer(self._actors), server)
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        training_pb2_grpc.add_TrainerServicer_to_server(TrainerServicer(self._link), self._local_server)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflecting = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflecting, self._server)

    def _trainer_restarts(self) -> int:
        return 0 if self.supervisor is None else self.supervisor.restarts

    @property
    def store_left_behind(self) -> bool:
        """Whether a request to the store was still under way at the end."""
        return self._shipping is not None and self._shipping.left_behind

    def _store_status(self) -> training_pb2.StoreStatus | None:
        return None if self._shipping is None else self._shipping.status

    def _new_server(self, *guards: Guard) -> Any:
        most = self._config.max_message_bytes
        return new_server((*guards, UnreadableRequests()), most, _SILENCE_S, _OPTIONS)

    def _bind_local(self) -> str:
        address = self._config.local_listen
        port = _bind(self._local_server, ServerAccess(), address)
        return f"{address.rpartition(':')[0]}:{port}"

    def _supervise(self) -> Supervisor:
        config = self._config
        command = (
            *config.trainer_command,
            *("--data", str(config.data), "--domain", str(config.domain)),
            *("--service", self.local_address, "--parent-pid", str(os.getpid())),
            *config.trainer_options,
        )
        return Supervisor(command, config.trainer_log, config.trainer_exit_wait_s)


async def _restore(config: ServiceConfig) -> None:
    """Fills a data folder that has no journal from the store, where there is one."""
    if config.store is not None:
        # Imported late: pyarrow takes 40 MB.
        from turnwise_learner.store.restore import restore

        await asyncio.to_thread(restore, config.store.uri, config.data)


@asynccontextmanager
async def _shipping(config: ServiceConfig, journal: Journal) -> "AsyncIterator[Shipping | None]":
    """Copies to the store while the block runs, and a last time after it."""
    if config.store is None:
        yield None
        return
    from turnwise_learner.store.shipping import Shipping

    shipping = Shipping(config.store, config.data, journal.epoch)
    await asyncio.to_thread(shipping.start, config.store_wait_s)
    try:
        yield shipping
    finally:
        await asyncio.to_thread(shipping.close, config.store_wait_s)


@asynccontextmanager
async def running(config: ServiceConfig) -> AsyncIterator[Service]:
    """A service that runs inside the block.

    Raises:
        DomainError: The domain file is wrong.
        JournalError: Another learner holds the journal, or it cannot be opened.
        AccessError, CredentialFileError: A certificate, key, or the credential file is wrong.
        StoreRefusedError: The store belongs to another journal, or another learner has taken it over.
        StoreError: The store has no journal that can be used, and the data folder has none.
        OSError: A file or folder cannot be written, the address cannot be listened on, or the store is away
            and the data folder has no journal.
    """
    domain = Domain.load(config.domain)
    config.create_folders()
    lock = JournalLock(config.data / "journal.lock")
    try:
        await _restore(config)
        journal = Journal(journal_path(config.data), config.max_pending_bytes)
        try:
            text = domain.to_json()
            await journal.submit(lambda c: versions.add_domain(c, domain.fingerprint, text))
            _replace(config.data / "domain.json", text)
            async with _shipping(config, journal) as shipping:
                orders = await StandingOrders.load(journal)
                service = Service(config, domain, journal, orders, shipping)
                await service.start()
                try:
                    yield service
                finally:
                    await service.stop()
        finally:
            await journal.close()
    finally:
        lock.release()


async def serve(config: ServiceConfig) -> bool:
    """Runs the service until SIGTERM or SIGINT; a second one, a second later, does not wait for the trainer.

    Returns:
        Whether a request to the store was left behind: the interpreter's end would wait for its answer.

    Raises:
        DomainError, JournalError, StoreError, OSError: See `running`.
    """
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    patient_until = math.inf
    async with running(config) as service:

        def on_signal() -> None:
            nonlocal patient_until
            if not signalled.is_set():
                patient_until = loop.time() + _ONE_REQUEST_S
            elif loop.time() > patient_until and service.supervisor is not None:
                service.supervisor.kill()
            signalled.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        await signalled.wait()
    log.info("stopped")
    return service.store_left_behind


def _bind(server: Server, access: ServerAccess, address: str) -> int:
    try:
        return bind(server, access, address)
    except OSError as error:
        raise OSError(f"cannot listen on {address}: is the port taken?") from error


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.aside")
    aside.write_text(text)
    aside.replace(path)
