"""Places a learner and actors on the Ray cluster of this machine; to be used on its head.

Each is a post on some node (`post.py`), tied to the cluster by a detached, named Ray actor that renews the
post's lease: the learner's on the head, one actor a unit of the custom resource `actor_node`. Ray starts a
Ray actor again after a crash, on another node if its own is gone; a node that is not there yet is waited for,
or started by the autoscaler. No turn goes through Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import ray
import ray.exceptions

from turnwise_actor.access.client_access import ClientAccess
from turnwise_actor.access.files import write_secret
from turnwise_actor.access.server_access import AccessError, ServerAccess
from turnwise_actor.policy import Domain, DomainError
from turnwise_deploy.cluster import ClusterError
from turnwise_deploy.commands import Listening, actor_command, learner_command
from turnwise_deploy.data_folder import DataFolder
from turnwise_deploy.local import LocalConfig
from turnwise_deploy.post import DATA, Order, State, post
from turnwise_deploy.readiness import Readiness

NAMESPACE, LEARNER, RESOURCE = "turnwise", "learner", "actor_node"
_HEAD = {"node:__internal_head__": 0.001}
_RENEW_EVERY_S = 1.0
_ANSWER_S = 5.0
"""A Ray actor that does not answer within it is waiting for a node, or its node is gone."""
_FREE_NAME_S = 30.0
_ENDS_S = 120.0

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


class PlacementError(ClusterError):
    """The cluster cannot do it; the message says why and what to change."""


@dataclass(frozen=True)
class ClusterConfig:
    """What `turnwise cluster place` is told. Paths are the same on every node; `~` is each node's own."""

    domain: Path
    """On the head; the actors get its content."""
    data: Path = DATA
    actors: int = LocalConfig.actors
    port: int = LocalConfig.port
    """Of the first actor of each node; further ones of the same node have the next ports."""
    learner_port: int = LocalConfig.learner_port
    metrics_port: int | None = None
    """Of the learner's metrics, over plain HTTP; those of a node's actors have the next. None: nowhere."""
    access: ServerAccess = field(default_factory=ServerAccess)
    learner_arguments: tuple[str, ...] = ()
    """Further arguments of `python -m turnwise_learner`."""
    actor_arguments: tuple[str, ...] = ()
    """Further arguments of `python -m turnwise_actor`."""
    outlive_s: float = Order.outlive_s
    """How long an actor goes on answering when the cluster is gone, before it ends by itself."""

    def __post_init__(self) -> None:
        if self.actors < 0:
            raise PlacementError(f"actors: got {self.actors}; wanted 0 or more")
        if not 0 < self.port <= 65535 - self.actors:
            raise PlacementError(f"--port: got {self.port}; wanted a port, and one above it an actor")
        if self.port <= self.learner_port < self.port + self.actors:
            raise PlacementError(
                f"port {self.learner_port} is wanted by the learner (--learner-port) and by an actor (--port)"
            )

    @property
    def folder(self) -> DataFolder:
        """The data folder of this node."""
        return DataFolder(self.data.expanduser())

    @property
    def door(self) -> str:
        """Where processes of the head come in to a learner that asks others who they are; else empty."""
        return f"127.0.0.1:{self.learner_port - 1}" if self.access.closed else ""

    def learner_command(self, ip: str) -> tuple[str, ...]:
        """Of the learner on a node, after `python`."""
        listening = self._listening(ip, self.learner_port, 0)
        domain = self.domain.expanduser()
        return learner_command(domain, self.folder, listening, self.door, self.learner_arguments)

    def actor_command(self, ip: str, slot: int, learner: str, domain: Path) -> tuple[str, ...]:
        """Of a node's actor of that slot, after `python`."""
        listening = self._listening(ip, self.port + slot, 1 + slot)
        return actor_command(domain, self.folder, listening, learner, self.actor_arguments)

    def _listening(self, ip: str, port: int, above: int) -> Listening:
        """With its metrics at a port so many above the first."""
        metrics = "" if self.metrics_port is None else f"{ip}:{self.metrics_port + above}"
        return Listening(f"{ip}:{port}", self._access_here(), metrics)

    def _access_here(self) -> ServerAccess:
        def here(path: Path | None) -> Path | None:
            return None if path is None else path.expanduser()

        access = self.access
        return replace(
            access,
            certificate=here(access.certificate),
            key=here(access.key),
            client_ca=here(access.client_ca),
            credentials=here(access.credentials),
        )


@dataclass(frozen=True)
class Placed:
    """One part of the cluster, as its Ray actor sees it."""

    node: str = ""
    """Its node's IP; empty: it waits for a node."""
    address: str = ""
    """HOST:PORT."""
    state: State | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs."""
        return None if self.state is None else self.state.pid


class Tie:
    """The Ray actor that ties a post on its node to the cluster.

    An actor takes the first slot of its node that no other has: whichever Ray puts there, the addresses of
    the node stay the same.

    Args:
        is_learner: It is the learner's; else an actor's.
        learner: Address of the learner.
        domain: Content of the domain file.
        keys: Content of the token keys' file, which all actors share.
    """

    def __init__(self, config: ClusterConfig, is_learner: bool, learner: str, domain: str, keys: str) -> None:
        self._config, self._node = config, ray.util.get_node_ip_address()
        folder = config.folder
        if is_learner:
            name, self._address, command = LEARNER, learner, config.learner_command(self._node)
        else:
            slot, self._held = _free_slot(folder.path)
            name, self._address = f"actor-{config.port + slot}", f"{self._node}:{config.port + slot}"
            folder.spool.mkdir(parents=True, exist_ok=True)
            _take_keys(folder.keys, keys)
            file = _written(folder.path / "domains", domain)
            command = config.actor_command(self._node, slot, learner, file)
        log = folder.logs / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._order = Order(command, str(log), outlive_s=config.outlive_s)
        self._post = post(folder.path, name)
        self._untied = threading.Event()
        self.start()

    def start(self) -> None:
        """Gives the order, and keeps it in force."""
        self._post.give(self._order)
        self._untied.clear()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def config(self) -> ClusterConfig:
        """What it was placed with."""
        return self._config

    def describe(self) -> Placed:
        """How it goes."""
        state = self._post.state() if self._post.is_kept() else None
        return Placed(self._node, self._address, state)

    def stop(self, timeout_s: float) -> int | None:
        """Has the process end; its exit code, None: it has not ended within the time."""
        self._untied.set()
        self._thread.join()
        ended = self._post.stop(timeout_s)
        state = self._post.state()
        return state.exit_code if ended and state is not None else None

    def _renew(self) -> None:
        while True:
            try:
                self._post.renew()
                self._post.ensure_keeper()
            except Exception:
                logger.exception("the post %s cannot be renewed", self._post.name)
            if self._untied.wait(_RENEW_EVERY_S):
                return


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Inside the block, this process is a driver of the Ray cluster that runs on this machine.

    Raises:
        PlacementError: None does.
    """
    try:
        ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise PlacementError(
            "no Ray cluster runs on this machine; from another one, name the cluster's YAML file"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def place(config: ClusterConfig, say: Say) -> None:
    """Places a learner and actors, or changes those that are placed; returns before they serve.

    What runs already and is to run as before is not disturbed. Actors above the wanted number are drained.

    Raises:
        PlacementError: The domain or the access is wrong, or Ray refuses.
    """
    ip = ray.util.get_node_ip_address()
    _check(config, ip)
    config.folder.ensure_keys()
    learner = f"{ip}:{config.learner_port}"
    contents = (config.domain.expanduser().read_text(), config.folder.keys.read_text())
    wanted = [f"actor-{number}" for number in range(config.actors)]
    for name in _actors():
        if name not in wanted:
            _remove(name, say)
    _tie(LEARNER, _HEAD, (config, True, learner, *contents))
    for name in wanted:
        _tie(name, {RESOURCE: 1}, (config, False, learner, *contents))
    say(f"placed the learner at {learner} and {config.actors} actors")


def scale(actors: int, say: Say) -> None:
    """Has another number of actors; all else stays as it is.

    Raises:
        PlacementError: Nothing is placed, or the number is wrong.
    """
    place(replace(placed_config(), actors=actors), say)


def placed_config() -> ClusterConfig:
    """What was placed last.

    Raises:
        PlacementError: Nothing is, or its learner does not answer.
    """
    try:
        config = ray.get(ray.get_actor(LEARNER).config.remote(), timeout=_ANSWER_S)
    except (ValueError, ray.exceptions.RayError) as error:
        raise PlacementError("nothing is placed on this cluster: `turnwise cluster place` does") from error
    assert isinstance(config, ClusterConfig)
    return config


def describe() -> dict[str, Placed]:
    """All parts by name, the learner first; those that do not answer wait for a node."""
    asked = {ray.get_actor(name).describe.remote(): name for name in _names()}
    if not asked:
        return {}
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    return {name: _answer(reply) if reply in answered else Placed() for reply, name in asked.items()}


def wait_ready(timeout_s: float, say: Say) -> dict[str, Placed]:
    """Returns when the learner and every actor serve.

    Raises:
        PlacementError: They do not within the time; says what is missing.
    """
    config, deadline, told = placed_config(), time.monotonic() + timeout_s, ""
    while True:
        parts = describe()
        missing = _missing(config, parts)
        if not missing:
            return parts
        if missing != told:
            say(f"waiting for {missing}")
            told = missing
        if time.monotonic() > deadline:
            raise PlacementError(f"still waiting for {missing} after {timeout_s:.0f} s")
        time.sleep(0.5)


def drain(names: Sequence[str], timeout_s: float, say: Say) -> bool:
    """Has actors end once all their facts are with the learner; whether all have.

    One that leaves facts in its spool, the learner being away, is started again to hand them over.

    Raises:
        PlacementError: There is no actor of that name.
    """
    if unknown := sorted(set(names) - set(_actors())):
        raise PlacementError(f"there is no {', '.join(unknown)}; wanted some of {', '.join(_actors())}")
    deadline, empty = time.monotonic() + timeout_s, True
    for name in names or _actors():
        empty &= _drain(name, deadline, say)
    return empty


def stop(say: Say) -> None:
    """Drains the actors, has the learner save and end, and takes all of them from the cluster."""
    for name in _actors():
        _remove(name, say)
    if LEARNER in _names():
        _remove(LEARNER, say)


def learner_access(config: ClusterConfig) -> tuple[str, ClientAccess]:
    """Where a process of the head asks the learner, and what it brings."""
    if config.door:
        return config.door, ClientAccess(token_file=config.folder.local_token)
    return f"{ray.util.get_node_ip_address()}:{config.learner_port}", ClientAccess()


def _check(config: ClusterConfig, ip: str) -> None:
    domain = config.domain.expanduser()
    if not domain.is_file():
        raise PlacementError(f"there is no domain file {domain} on the head; name it with --domain")
    try:
        Domain.load(domain)
        config.access.check(f"{ip}:{config.port}")
    except (DomainError, AccessError) as error:
        raise PlacementError(str(error)) from error
    held = config.folder.credentials
    if config.access.credentials is None and held.exists():
        raise PlacementError(
            f"--credentials: got none, but the head has {held}, which its learner would ask everybody for; "
            "wanted that file, on every node, or for it to be gone"
        )


def _free_slot(data: Path) -> tuple[int, TextIO]:
    """The first slot of this node that no other Ray actor holds, and the file that holds it.

    Raises:
        PlacementError: None gets free, though Ray has placed an actor here.
    """
    node = ray.get_runtime_context().get_node_id()
    resources = next(each["Resources"] for each in ray.nodes() if each["NodeID"] == node)
    deadline = time.monotonic() + _FREE_NAME_S
    (data / "cluster").mkdir(parents=True, exist_ok=True)
    while True:
        for slot in range(int(resources.get(RESOURCE, 1))):
            held = (data / "cluster" / f"slot-{slot}.lock").open("w")
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return slot, held
            held.close()
        if time.monotonic() > deadline:
            raise PlacementError(f"all slots of {RESOURCE} of this node are held")
        time.sleep(0.2)  # one that was killed is still ending


def _take_keys(file: Path, given: str) -> None:
    """Seals with the head's keys from now on.

    A head that has lost its disk makes new ones. Dialogues that are open then go on all the same: where no
    key is known here, the ones from before open tokens as retired ones do.
    """
    taken = json.loads(given)
    here = json.loads(file.read_text()) if file.exists() else {"keys": {}}
    kept = set(here.get("kept", ()))
    if not here["keys"].keys() & taken["keys"].keys():
        kept |= here["keys"].keys()
    if kept:
        now, retired = time.time(), here.get("retired", {})
        taken["keys"].update({name: here["keys"][name] for name in kept})
        taken["retired"] = {**taken.get("retired", {}), **{name: retired.get(name, now) for name in kept}}
        taken["kept"] = sorted(kept)
    if taken != here:
        write_secret(file, json.dumps(taken))


def _written(folder: Path, domain: str) -> Path:
    """A file of a name of its own for each content: another domain is another command."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.blake2b(domain.encode(), digest_size=8).hexdigest()}.yaml"
    aside = folder / f".{path.name}.{os.getpid()}"
    aside.write_text(domain)
    aside.replace(path)
    return path


def _names() -> list[str]:
    """Of all parts: the learner, then the actors by number."""
    names = [str(name) for name in ray.util.list_named_actors()]
    return sorted(names, key=lambda name: -1 if name == LEARNER else int(name.removeprefix("actor-")))


def _actors() -> list[str]:
    return [name for name in _names() if name != LEARNER]


def _tie(name: str, resources: dict[str, float], arguments: tuple[Any, ...]) -> None:
    """Makes the Ray actor, in the place of one that is there; its process need not notice."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(name))
    options = {
        "name": name,
        "lifetime": "detached",
        "max_restarts": -1,
        "max_concurrency": 4,  # short calls are answered while `stop` waits
        "num_cpus": 0,
        "resources": resources,
    }
    deadline = time.monotonic() + _FREE_NAME_S
    while True:
        try:
            ray.remote(Tie).options(**options).remote(*arguments)
            return
        except ValueError as error:  # the one that was killed still has the name
            if time.monotonic() > deadline:
                raise PlacementError(f"{name} cannot be placed: {error}") from error
            time.sleep(0.2)


def _remove(name: str, say: Say) -> None:
    handle = ray.get_actor(name)
    say(f"stopping {name}")
    if _answer(handle.describe.remote()).node:
        code = _get(handle.stop.remote(_ENDS_S), _ENDS_S + _ANSWER_S)
        if code == os.EX_TEMPFAIL:
            say(f"{name} left facts in the spool of its node; the next actor there hands them over")
        elif code is None:
            say(f"{name} has not ended in time, or its node is gone")
    ray.kill(handle)


def _drain(name: str, deadline: float, say: Say) -> bool:
    handle = ray.get_actor(name)
    while True:
        if not _answer(handle.describe.remote()).node:
            say(f"{name} does not run")
            return True
        say(f"draining {name}")
        code = _get(handle.stop.remote(_ENDS_S), _ENDS_S + _ANSWER_S)
        if code != os.EX_TEMPFAIL:
            say(f"{name} has ended" + ("" if code == 0 else f" with {code}"))
            return bool(code == 0)
        if time.monotonic() > deadline:
            say(f"{name} left facts in the spool of its node: the learner did not take them")
            return False
        say(f"{name} left facts in its spool: it goes on until the learner has them")
        _get(handle.start.remote(), _ANSWER_S)
        time.sleep(5.0)


def _answer(reply: Any) -> Placed:
    placed = _get(reply, _ANSWER_S)
    return placed if isinstance(placed, Placed) else Placed()


def _get(reply: Any, timeout_s: float) -> Any:
    """None: no answer in time, or nobody there."""
    try:
        return ray.get(reply, timeout=timeout_s)
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.debug("no answer: %s", error)
        return None


def _missing(config: ClusterConfig, parts: Mapping[str, Placed]) -> str:
    waiting = [name for name, part in parts.items() if not part.pid]
    if waiting:
        return ", ".join(waiting) + " (no process yet)"
    actors = {part.address: part.pid for name, part in parts.items() if name != LEARNER}
    address, access = learner_access(config)
    with Readiness(address, access, tuple(actors), config.access.certificate is not None) as readiness:
        return readiness.missing(actors)
