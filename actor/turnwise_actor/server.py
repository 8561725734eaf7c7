"""One actor process: its parts put together, from the first connection to the last fact."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from typing import TYPE_CHECKING

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise.v1.dialogue_pb2_grpc import add_DialogueServicer_to_server
from turnwise_actor import facts
from turnwise_actor.access.client_access import Link
from turnwise_actor.access.guard import Guard, callers_of
from turnwise_actor.access.unreadable import UnreadableRequests
from turnwise_actor.config import ActorConfig
from turnwise_actor.dialogues import Dialogues
from turnwise_actor.http2 import HTTP2
from turnwise_actor.http2.server import Server, bind, new_server
from turnwise_actor.policy import Domain, Policy
from turnwise_actor.requests import READERS, TURNS
from turnwise_actor.servicer import ActorServicer
from turnwise_actor.spool import Spool
from turnwise_actor.tokens import KeyRing, Tokens
from turnwise_actor.uplink import Uplink
from turnwise_actor.weights import Policies, PolicyWatch, load_policy, version_message

if TYPE_CHECKING:
    from turnwise_actor.metrics_server import MetricsServer

SERVICE = dialogue_pb2.DESCRIPTOR.services_by_name["Dialogue"].full_name

_SILENCE_S = 60
_SERVER_OPTIONS = (
    # Clients may ask every 10 s, also between calls, whether we are still there.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

logger = logging.getLogger(__name__)


class ListenError(OSError):
    """The address cannot be listened on."""


class ActorServer:
    """An actor that listens from `start` to `stop`.

    Raises on construction: DomainError, KeyFileError, PolicyFileError, UnfitPolicyError,
    CredentialFileError, OSError.
    """

    def __init__(self, config: ActorConfig) -> None:
        self._config = config
        self._domain = Domain.load(config.domain_file)
        self._keys = KeyRing(config.key_file, self._domain.name)
        self._policies = Policies(self._domain)
        if config.policy_path is not None:
            self._load(config)
        callers = callers_of(config.access)
        self._guard = None if callers is None else Guard(callers)
        self._incarnation = secrets.token_hex(8)
        self._started_ms = facts.now_ms()
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics: MetricsServer | None = None
        self.address = ""
        self.stopped = False

    def _load(self, config: ActorConfig) -> None:
        assert config.policy_path is not None
        policy = load_policy(config.policy_path)
        if policy is None:
            logger.info("%s holds no policy yet", config.policy_path)
        else:
            self._policies.install(policy)

    @property
    def policies(self) -> Policies:
        """The policies this actor answers from."""
        return self._policies

    @property
    def uplink(self) -> Uplink:
        """The way of facts to the learner."""
        return self._uplink

    @property
    def spool(self) -> Spool:
        """The disk that stands in for the learner."""
        return self._spool

    @property
    def metrics_address(self) -> str:
        """HOST:PORT of the metrics, once it listens; empty: they are served nowhere."""
        return self._metrics.address if self._metrics is not None else ""

    async def start(self) -> None:
        """Listens, connects to the learner, and serves as soon as there is a policy.

        Raises:
            ListenError: The address cannot be listened on.
            AccessError: A certificate or key is wrong.
        """
        config = self._config
        guards = () if self._guard is None else (self._guard,)
        interceptors = (*guards, UnreadableRequests(READERS))
        self._server = new_server(interceptors, config.max_message_bytes, _SILENCE_S, _SERVER_OPTIONS)
        self.address = _listen(self._server, config)
        self._link = Link(config.learner_address, config.learner_access, _channel_options())
        self._spool = Spool(
            config.spool_folder,
            self.address.replace(":", "_"),
            max_bytes=config.spool.max_bytes,
            segment_bytes=config.spool.segment_bytes,
        )
        incarnation = int(self._incarnation, 16)
        self._uplink = Uplink(self._link, self._spool, config.uplink, self._report, incarnation)
        tokens = Tokens(self._keys, self._domain.name)
        self._dialogues = Dialogues(self._domain, tokens, self._policies, self._uplink, config.token)
        self._servicer = ActorServicer(self._dialogues, config.stream)
        add_DialogueServicer_to_server(self._servicer, self._server)
        await self._add_standard_services()
        if config.metrics_listen is not None:
            try:
                await self._serve_metrics(config.metrics_listen)
            except ListenError:
                await self._server.stop(0)
                raise
        await self._server.start()
        self._follow_learner()
        if config.address_file is not None:
            _write_whole(config.address_file, self.address)
        logger.info(
            "actor %s listens on %s for the domain %s; turns are answered %s, calls taken %s",
            self._incarnation,
            self.address,
            self._domain.name,
            "in Python alone: the compiled turn path is not there" if TURNS is None else "by compiled code",
            "by grpc.aio: the compiled HTTP/2 server is not there" if HTTP2 is None else "by its own HTTP/2",
        )

    async def stop(self) -> bool:
        """Drains: streams move, calls in flight finish, facts go out. True: nothing is left unsent."""
        logger.info("draining")
        self.stopped = True
        await self._health.enter_graceful_shutdown()
        self._servicer.drain()
        self._uplink.report_soon()
        await self._server.stop(self._config.drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        clean = await self._uplink.close(self._config.drain_s)
        await self._spool.close()
        await self._link.close()
        if self._metrics is not None:
            await self._metrics.stop()
        if clean:
            logger.info("nothing is left unsent")
        else:
            logger.warning("facts are left in the spool %s", self._spool.folder)
        return clean

    async def _serve_metrics(self, address: str) -> None:
        # Imported where it is wanted: 2.6 MB, and a sixth of the start.
        from turnwise_actor.metrics import ActorMetrics
        from turnwise_actor.metrics_server import MetricsServer

        uplink, latencies = self._uplink, self._dialogues.latencies
        limit_bytes = self._config.spool.max_bytes
        told = ActorMetrics(self._domain, self._report, lambda: uplink.connected, latencies, limit_bytes)
        self._metrics = MetricsServer(told)
        try:
            await self._metrics.start(address)
        except OSError as error:
            raise ListenError(error.strerror) from error
        logger.info("metrics are at http://%s/metrics", self.metrics_address)

    async def _add_standard_services(self) -> None:
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflecting = reflection.aio.ReflectionServicer(names)  # type: ignore[attr-defined]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflecting, self._server)
        self._serving = asyncio.Event()
        self._policies.on_change(self._on_policy)
        if self._policies.current is not None:
            self._serving.set()
        await self._set_health()

    def _on_policy(self, policy: Policy) -> None:
        self._serving.set()
        self._uplink.report_soon()

    async def _set_health(self) -> None:
        state = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            await self._health.set(name, state.SERVING if self._serving.is_set() else state.NOT_SERVING)

    def _follow_learner(self) -> None:
        watch = PolicyWatch(self._link, self._policies, self._domain.fingerprint, self.address)
        self._uplink.start()
        self._tasks = [
            asyncio.create_task(watch.run(), name="policy-watch"),
            asyncio.create_task(self._become_healthy(), name="health"),
            asyncio.create_task(self._adopt_spools(), name="adoption"),
        ]
        if self._guard is not None:
            self._tasks.append(asyncio.create_task(self._guard.watch(), name="guard"))

    async def _become_healthy(self) -> None:
        await self._serving.wait()
        await self._set_health()

    async def _adopt_spools(self) -> None:
        while True:
            with contextlib.suppress(FileNotFoundError):  # another actor was faster
                if await self._spool.adopt():
                    self._uplink.report_soon()
            await asyncio.sleep(self._config.spool.adopt_interval_s)

    def _report(self) -> training_pb2.ActorReport:
        policy = self._policies.current
        counters = self._dialogues.counters
        report = training_pb2.ActorReport(
            address=self.address,
            incarnation=self._incarnation,
            turns=counters.turns,
            unrecorded_turns=counters.unrecorded_turns,
            pending_facts=self._uplink.pending_facts,
            spooled_bytes=self._spool.size_bytes,
            streams=self._servicer.streams,
            pid=os.getpid(),
            started_ms=self._started_ms,
            draining=self._servicer.draining,
            journaled_through=self._uplink.journaled_through,
        )
        if policy is not None:
            report.policy_version.CopyFrom(version_message(policy.version))
            report.learned_through = policy.learned_through
        return report


def _listen(server: Server, config: ActorConfig) -> str:
    address = config.listen_address
    try:
        port = bind(server, config.access, address)
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {error}") from error
    return f"{address.rpartition(':')[0]}:{port}"


def _channel_options() -> list[tuple[str, int]]:
    return [
        # A frozen learner, or a machine that is gone, is noticed after 15 s at most.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ]


def _write_whole(file: os.PathLike[str], content: str) -> None:
    """Writes a file that nobody sees half-written."""
    aside = f"{os.fspath(file)}.{os.getpid()}"
    with open(aside, "w", encoding="utf-8") as out:
        out.write(content)
    os.replace(aside, file)
