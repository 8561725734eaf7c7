"""A learner and its actors on this machine, as `turnwise up` runs them.

Tests and benchmarks use it as a context manager: inside the block, `actors` and `learner` are its addresses.
"""

import contextlib
import importlib.util
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from turnwise_actor.access.client_access import ClientAccess
from turnwise_actor.access.server_access import AccessError, ServerAccess
from turnwise_deploy.child import Child
from turnwise_deploy.commands import Listening, actor_command, learner_command
from turnwise_deploy.data_folder import DataFolder
from turnwise_deploy.readiness import Readiness

log = logging.getLogger(__name__)

Say = Callable[[str], None]

_WATCH_EVERY_S = 0.05
_READY_EVERY_S = 0.1
_PEACEFUL = (None, os.EX_OK, os.EX_TEMPFAIL, -signal.SIGTERM)
"""Ends after SIGTERM that need no words of their own."""
_REFUSALS = (2, os.EX_CONFIG)
"""Exit codes of a process that refuses its arguments or its files: starting it again is of no use."""


class DeploymentError(RuntimeError):
    """The deployment cannot start; the message says why and what to change."""


@dataclass(frozen=True)
class LocalConfig:
    """What `turnwise up` is told."""

    domain: Path
    """The domain file."""
    data: Path = Path("turnwise-data")
    """Folder of journal, checkpoints, policies, spool, logs and keys; made where it is missing."""
    actors: int = 1
    """Actor processes. More of them answer more people at once; one answers thousands of turns a second."""
    host: str = "127.0.0.1"
    """Address that all processes listen at. Anything but loopback wants an `access` that asks who calls."""
    access: ServerAccess = field(default_factory=ServerAccess)
    """Who may connect, over what; `credentials` default to those of the data folder if it has some."""
    port: int = 50051
    """Port of the first actor; the next ones follow. 0: free ones are chosen."""
    learner_port: int = 50050
    """Port of the learner. 0: a free one is chosen."""
    metrics_port: int | None = None
    """Port of the learner's metrics for Prometheus, over plain HTTP; those of the actors follow. 0: free ones
    are chosen. None: metrics are served nowhere."""
    learner_arguments: tuple[str, ...] = ()
    """Further arguments of `python -m turnwise_learner`."""
    actor_arguments: tuple[str, ...] = ()
    """Further arguments of `python -m turnwise_actor`."""
    start_timeout_s: float = 180.0
    """Raise it where the machine is so slow that the learner needs longer to begin."""
    start_attempts: int = 3
    """Deaths of one process before the deployment has ever been ready that it gives up at."""
    actor_drain_s: float = 30.0
    """How long actors get to answer what they were asked and to hand their facts over, at the end."""
    learner_stop_s: float = 90.0
    """How long the learner gets to save a checkpoint at the end."""

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise DeploymentError(f"--actors: got {self.actors}; wanted at least 1")
        for setting, port, count in (
            ("--port", self.port, self.actors),
            ("--learner-port", self.learner_port, 1),
            ("--metrics-port", self.metrics_port or 0, 1 + self.actors),
        ):
            if port and not 0 < port <= port + count - 1 <= 65535:
                raise DeploymentError(f"{setting}: got {port}; wanted 0, or ports from 1 to 65535")
        if self.port and self.port <= self.learner_port < self.port + self.actors:
            raise DeploymentError(
                f"port {self.learner_port} is wanted by the learner (--learner-port) and by an actor "
                f"(--port {self.port}, {self.actors} actors)"
            )


@dataclass
class LocalDeployment:
    """Child processes under one supervising thread, from `start()` to `stop()`.

    That thread starts every child, because the kernel ends a child with the thread that started it.
    """

    config: LocalConfig
    say: Say = log.info
    """Told, in one line each, what a person at the terminal should know."""
    actors: tuple[str, ...] = ()
    """HOST:PORT of each actor, from `start()` on."""
    learner: str = ""
    """HOST:PORT of the learner, from `start()` on."""
    metrics: dict[str, str] = field(default_factory=dict)
    """HOST:PORT of the metrics of each part, by its address, from `start()` on; empty: there are none."""
    _access: ServerAccess = field(default_factory=ServerAccess)
    _door: str = ""
    """HOST:PORT of the learner's local door, where processes of this deployment come in; empty: they come in
    at `learner`, which asks nobody."""
    _children: dict[str, Child] = field(default_factory=dict, repr=False)
    _stopping: threading.Event = field(default_factory=threading.Event, repr=False)
    _killing: threading.Event = field(default_factory=threading.Event, repr=False)
    _ready: threading.Event = field(default_factory=threading.Event, repr=False)
    _restart_asked: threading.Event = field(default_factory=threading.Event, repr=False)
    _to_renew: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue, repr=False)
    """Actors that the supervisor is to end and start again."""
    _failure: str = ""
    _thread: threading.Thread | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.folder = DataFolder(self.config.data)

    def __enter__(self) -> "LocalDeployment":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts all processes and returns when they serve.

        Raises:
            DeploymentError: Something the caller can change: a port, the domain, an extra.
            DataFolderInUseError: Another deployment works in the data folder.
        """
        self.begin()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def begin(self) -> None:
        """Starts all processes and returns at once."""
        _check_installed()
        _check_domain(self.config.domain)
        self._access = self._checked_access()
        self.folder.lock(self.config.learner_stop_s, self.say)
        try:
            self.folder.ensure_keys()
            self._assign_ports()
        except BaseException:
            self.folder.unlock()
            raise
        self._thread = threading.Thread(target=self._supervise, name="turnwise-up", daemon=True)
        self._thread.start()

    def wait_ready(self) -> None:
        """Returns when every actor serves with a policy of this learner, or after `stop()`.

        Raises:
            DeploymentError: A process keeps dying, or `start_timeout_s` has passed.
        """
        if self._until_served(self.actors):
            self._ready.set()

    def _until_served(self, actors: Collection[str]) -> bool:
        """Waits until the learner and these actors serve; False: it is to stop."""
        deadline = time.monotonic() + self.config.start_timeout_s
        told = ""
        encrypted = self._access.certificate is not None
        with Readiness(self._door or self.learner, self._own_access(), self.actors, encrypted) as readiness:
            while not self._stopping.is_set():
                if self._failure:
                    raise DeploymentError(self._failure)
                missing = readiness.missing({actor: self._pid(actor) for actor in actors})
                if not missing:
                    return True
                if missing != told:
                    self.say(f"waiting for {missing}")
                    told = missing
                if time.monotonic() > deadline:
                    raise DeploymentError(
                        f"still waiting for {missing} after {self.config.start_timeout_s:.0f} s; "
                        f"see {self.folder.logs}"
                    )
                self._stopping.wait(_READY_EVERY_S)
        return False

    @property
    def ready(self) -> bool:
        """True once the deployment has served, and until it is asked to stop."""
        return self._ready.is_set() and not self._stopping.is_set()

    def wait(self) -> None:
        """Returns when the deployment is asked to stop; restarts the actors when asked to.

        Raises:
            DeploymentError: The supervisor itself failed.
        """
        while not self._stopping.wait(0.2):
            if self._failure:
                raise DeploymentError(self._failure)
            if self._restart_asked.is_set():
                self._restart_asked.clear()
                try:
                    self.restart_actors()
                except DeploymentError as error:
                    self.say(f"the actors are not restarted any further: {error}")

    def request_restart(self) -> None:
        """Has `wait()` restart the actors and returns at once. Not for a signal handler: see `on_signals`."""
        self._restart_asked.set()

    def restart_actors(self) -> dict[str, int | None]:
        """Drains the actors and starts them again, each while all others serve; returns exit codes.

        Clients move on to the others meanwhile; with one actor alone they wait. 0: the actor has handed all
        over; 75: it left facts in its spool, which is taken up by the next process.

        Raises:
            DeploymentError: The learner or another actor does not serve in time. The actors that are left
                go on as they were.
        """
        codes: dict[str, int | None] = {}
        for actor in self.actors:
            self._until_served([other for other in self.actors if other != actor])
            before = self._pid(actor)
            self.say(f"restarting the actor {actor}")
            self._to_renew.put(actor)
            while self._pid(actor) in (before, None):
                if self._stopping.wait(_WATCH_EVERY_S):
                    return codes
            codes[actor] = self._children[actor].exit_code
        if self._until_served(self.actors):
            self.say("all actors have been restarted")
        return codes

    def request_stop(self) -> None:
        """Has the supervisor begin to stop, returns at once. Not for a signal handler: see `on_signals`."""
        self._stopping.set()

    def stop(self) -> None:
        """Drains the actors, then has the learner save and end. Harmless when nothing runs."""
        self._stopping.set()
        if self._thread is not None:
            while self._thread.is_alive():  # in short waits, so that signals are handled meanwhile
                self._thread.join(0.1)
            self._thread = None
        self.folder.unlock()

    def kill(self) -> None:
        """Ends every process at once. What was acknowledged is safe; the next start replays it."""
        self._killing.set()
        self._stopping.set()

    def pids(self) -> dict[str, int | None]:
        """The process of each part, by address; None while it is being started again."""
        return {address: child.pid for address, child in self._children.items()}

    def _pid(self, address: str) -> int | None:
        child = self._children.get(address)
        return child.pid if child is not None else None

    def _checked_access(self) -> ServerAccess:
        access = self.config.access
        if access.credentials is None and self.folder.credentials.exists():
            access = replace(access, credentials=self.folder.credentials)
        try:
            access.check(f"{self.config.host}:{self.config.port}")
        except AccessError as error:
            raise DeploymentError(str(error)) from error
        return access

    def _own_access(self) -> ClientAccess:
        """What processes of this deployment bring to the learner."""
        return ClientAccess(token_file=self.folder.local_token if self._door else None)

    def _assign_ports(self) -> None:
        config = self.config
        wanted = [("--learner-port", config.learner_port)]
        wanted += [("--port", config.port + i if config.port else 0) for i in range(config.actors)]
        if (first := config.metrics_port) is not None:
            wanted += [("--metrics-port", first + i if first else 0) for i in range(1 + config.actors)]
        with contextlib.ExitStack() as held:
            addresses = [
                f"{config.host}:{held.enter_context(_bound(config.host, port, setting)).getsockname()[1]}"
                for setting, port in wanted
            ]
            if self._access.closed:
                door = held.enter_context(_bound("127.0.0.1", 0, "--learner-port")).getsockname()
                self._door = f"127.0.0.1:{door[1]}"
        parts, metrics = addresses[: 1 + config.actors], addresses[1 + config.actors :]
        self.learner, self.actors = parts[0], tuple(parts[1:])
        self.metrics = dict(zip(parts, metrics, strict=False))

    def _make_children(self) -> Iterator[tuple[str, Child]]:
        folder, config, domain = self.folder, self.config, self.config.domain.absolute()
        inherit = () if folder.lock_fd is None else (folder.lock_fd,)
        listening = self._listening(self.learner)
        command = learner_command(domain, folder, listening, self._door, config.learner_arguments)
        yield self.learner, Child("learner", command, folder.logs / "learner.log", inherit)
        folder.spool.mkdir(exist_ok=True)
        token = ("--learner-credentials", str(folder.local_token)) if self._door else ()
        further = (*token, *config.actor_arguments)
        for actor in self.actors:
            listening = self._listening(actor)
            command = actor_command(domain, folder, listening, self._door or self.learner, further)
            log = folder.logs / f"actor-{actor.rpartition(':')[2]}.log"
            yield actor, Child(f"actor {actor}", command, log, inherit)

    def _listening(self, address: str) -> Listening:
        return Listening(address, self._access, self.metrics.get(address, ""))

    def _supervise(self) -> None:
        try:
            self._children = dict(self._make_children())
            for child in self._children.values():
                child.start()
            while not self._stopping.wait(_WATCH_EVERY_S):
                self._renew()
                for child in self._children.values():
                    self._tend(child)
            if not self._killing.is_set():
                self._drain()
        except OSError as error:  # no space, no permission, no more processes
            self._failure = f"cannot keep the processes running: {error}"
            log.exception("the supervisor ends")
        finally:
            self._kill_rest()

    def _renew(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._children[self._to_renew.get_nowait()].renew(self.config.actor_drain_s)

    def _tend(self, child: Child) -> None:
        as_asked = child.renewing
        if (code := child.poll()) is not None:
            if as_asked and code in _PEACEFUL:
                return
            if not self._ready.is_set() and (code in _REFUSALS or child.deaths >= self.config.start_attempts):
                while_starting = f"the {child.name} {_ended(code)} while starting; {child.log} ends with\n"
                self._failure = while_starting + child.log_tail()  # at once: another thread tells it
            else:
                wait = f"{child.backoff_s:g} s"
                self.say(f"the {child.name} {_ended(code)}; starting it again in {wait} (see {child.log})")
        elif child.due and not self._failure:
            child.start()

    def _drain(self) -> None:
        actors = [self._children[address] for address in self.actors]
        running = sum(child.pid is not None for child in actors)
        self.say(f"stopping: actors finish what they were asked ({running} of {len(actors)} running)")
        self._end(actors, self.config.actor_drain_s)
        for child in actors:
            if child.exit_code == os.EX_TEMPFAIL:
                self.say(f"the {child.name} left facts in its spool; the next start hands them over")
        if not self._killing.is_set():
            self.say("stopping: the learner saves a checkpoint")
            self._end([self._children[self.learner]], self.config.learner_stop_s)

    def _end(self, children: list[Child], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for child in children:
            child.terminate()
        while any(child.pid is not None for child in children) and not self._killing.is_set():
            for child in children:
                if (code := child.poll()) not in _PEACEFUL:
                    self.say(f"the {child.name} {_ended(code or 0)} at the end (see {child.log})")
            if time.monotonic() > deadline:
                late = ", ".join(child.name for child in children if child.pid is not None)
                self.say(f"killed after {timeout_s:.0f} s: {late}")
                return
            self._killing.wait(_WATCH_EVERY_S)

    def _kill_rest(self) -> None:
        for child in self._children.values():
            child.kill()
        while any(child.pid is not None for child in self._children.values()):
            for child in self._children.values():
                child.poll()
            time.sleep(_WATCH_EVERY_S)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by signal {-code}"


def _bound(host: str, port: int, setting: str) -> socket.socket:
    family, kind, protocol, _, address = _resolve(host, port)
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1)  # two sockets may be bound to one port with SO_REUSEADDR, but not listen
    except OSError as error:
        listener.close()
        raise DeploymentError(
            f"port {port} at {host} cannot be used ({error.strerror}); choose others with {setting}, "
            "0 for any free ones"
        ) from error
    return listener


def _resolve(host: str, port: int) -> tuple[int, int, int, str, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise DeploymentError(f"--host: {host!r} is no address ({error.strerror})") from error
    return found[0]


def _check_installed() -> None:
    needed = ("turnwise_actor", "turnwise_learner", "grpc_health", "cryptography", "ray", "torch")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise DeploymentError(
            f"a deployment needs: pip install 'turnwise[learner]' (missing: {', '.join(missing)})"
        )


def _check_domain(path: Path) -> None:
    from turnwise_actor.policy import Domain, DomainError

    if not path.is_file():
        raise DeploymentError(f"there is no domain file {path}; name it with --domain")
    try:
        Domain.load(path)
    except DomainError as error:
        raise DeploymentError(str(error)) from error
