"""The policy that an actor answers from, and how new versions of it come.

Versions are ordered by (generation, number) and never go back within a process: a rollback comes as a
new, higher generation. A policy made for another domain's shape is refused, and the one in force stays.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise.v1.training_pb2_grpc import TrainingStub
from turnwise_actor.access.client_access import Link
from turnwise_actor.policy import Domain, Encoder, Policy, PolicyFileError, PolicyVersion, policy_files

if TYPE_CHECKING:
    from turnwise.v1.training_pb2_grpc import TrainingAsyncStub

MAX_POLICY_BYTES = 1 << 30
_AT_ONCE_BYTES = 1 << 20
"""A file of this machine up to this size is read within the event loop, in the time of a turn or two. A
thread would hold the loop up for as long, at twice the CPU time, and longer where it is preempted while it
holds the interpreter's lock."""
_KEPT = 3
_PAUSE_MIN_S = 0.1
_PAUSE_MAX_S = 2.0

logger = logging.getLogger(__name__)


class UnfitPolicyError(ValueError):
    """A policy that this actor's domain cannot use."""


class BrokenTransferError(Exception):
    """Chunks that do not make up a policy file."""


class FileElsewhereError(Exception):
    """The file that the learner tells of is not on this machine, or no longer there."""


class Policies:
    """The newest policy and a few before it. A turn takes `current` once, so a swap never splits a turn."""

    def __init__(self, domain: Domain) -> None:
        self._fingerprint = domain.fingerprint
        self._inputs = Encoder(domain).size
        self._actions = len(domain.action_ids)
        self._kept: deque[Policy] = deque(maxlen=_KEPT)
        self._listeners: list[Callable[[Policy], None]] = []

    @property
    def current(self) -> Policy | None:
        """The newest, or None before the first."""
        return self._kept[-1] if self._kept else None

    @property
    def kept(self) -> tuple[Policy, ...]:
        """The last few, oldest first."""
        return tuple(self._kept)

    def on_change(self, listener: Callable[[Policy], None]) -> None:
        """Calls `listener` with each policy that comes into force."""
        self._listeners.append(listener)

    def install(self, policy: Policy) -> bool:
        """Puts a policy into force; False if it is not newer. Raises UnfitPolicyError."""
        self._check(policy)
        if self.current is not None and policy.version <= self.current.version:
            logger.info("policy %s is not newer than %s in force", policy.version, self.current.version)
            return False
        _ = policy.network  # built by now, or now, but not at the first turn
        self._kept.append(policy)
        logger.info("policy %s is in force, learned through %d", policy.version, policy.learned_through)
        for listener in self._listeners:
            listener(policy)
        return True

    def _check(self, policy: Policy) -> None:
        if policy.fingerprint != self._fingerprint:
            raise UnfitPolicyError(
                f"policy {policy.version} was made for the domain shape {policy.fingerprint}; "
                f"this actor's domain file has {self._fingerprint}"
            )
        got, wanted = (policy.spec.inputs, policy.spec.actions), (self._inputs, self._actions)
        if got != wanted:
            raise UnfitPolicyError(f"policy {policy.version}: got (inputs, actions) {got}; wanted {wanted}")


def load_policy(path: Path) -> Policy | None:
    """The policy of a file, or of the newest `<generation>.<number>.safetensors` in a folder, if any.

    Raises:
        OSError: the file cannot be read.
        PolicyFileError: it is not a policy.
    """
    if path.is_dir():
        files = policy_files(path)
        if not files:
            return None
        path = files[max(files)]
    return Policy.from_bytes(path.read_bytes())


class PolicyWatch:
    """Follows the learner's policies into `Policies`; connects again for ever.

    It asks for the policies' files first: on the learner's machine they are mapped, so that any number of
    actors hold them once. Where the files are not found, they are sent.
    """

    def __init__(
        self, link: Link, policies: Policies, fingerprint: str, actor: str, map_file: bool = True
    ) -> None:
        self._link = link
        self._policies = policies
        self._fingerprint = fingerprint
        self._actor = actor
        self._map_file = map_file
        self._has_mapped = False

    async def run(self) -> None:
        """Runs until cancelled."""
        pause_s = _PAUSE_MIN_S
        while True:
            stub = cast("TrainingAsyncStub", TrainingStub(self._link.channel()))
            call = stub.WatchPolicy(self._request(), metadata=self._link.metadata())
            try:
                async for policy in receive_policies(call):
                    pause_s = _PAUSE_MIN_S
                    self._has_mapped = self._map_file
                    self._install(policy)
                logger.debug("the learner ended the stream of policies")
            except grpc.aio.AioRpcError as error:
                logger.debug("no policies from the learner: %s", error.details())
            except FileElsewhereError as error:
                logger.debug("%s", error)
                # One that was found before has only made room for newer ones.
                self._map_file = self._has_mapped
                pause_s = _PAUSE_MIN_S
            except (BrokenTransferError, PolicyFileError) as error:
                logger.error("a policy from the learner cannot be read: %s", error)
            finally:
                call.cancel()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    def _install(self, policy: Policy) -> None:
        try:
            self._policies.install(policy)
        except UnfitPolicyError as error:
            logger.error("refused: %s", error)

    def _request(self) -> training_pb2.WatchPolicyRequest:
        request = training_pb2.WatchPolicyRequest(
            domain_fingerprint=self._fingerprint, actor=self._actor, map_file=self._map_file
        )
        if self._policies.current is not None:
            request.have.CopyFrom(version_message(self._policies.current.version))
        return request


async def receive_policies(chunks: AsyncIterable[training_pb2.PolicyChunk]) -> AsyncIterator[Policy]:
    """Each policy of a stream of chunks, read and made ready, a big one off the event loop."""
    file = bytearray()
    async for chunk in chunks:
        if chunk.HasField("file"):
            yield _mapped(chunk) if chunk.total <= _AT_ONCE_BYTES else await asyncio.to_thread(_mapped, chunk)
            continue
        if chunk.offset == 0:
            file.clear()
        if chunk.offset != len(file) or not chunk.offset + len(chunk.data) <= chunk.total <= MAX_POLICY_BYTES:
            raise BrokenTransferError(
                f"got {len(chunk.data)} bytes at {chunk.offset} of {chunk.total}; "
                f"wanted the next at {len(file)}, at most {MAX_POLICY_BYTES} in all"
            )
        file += chunk.data
        if len(file) == chunk.total:
            yield await asyncio.to_thread(Policy.from_bytes, bytes(file))
            file.clear()


def _mapped(notice: training_pb2.PolicyChunk) -> Policy:
    told = notice.file
    try:
        file = os.open(told.path, os.O_RDONLY)
        try:
            found = os.fstat(file)
            here = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if here != (told.device, told.inode, told.modified_ns, notice.total):
                raise FileElsewhereError(f"{told.path} is another file here")
            return Policy.mapped(file)
        finally:
            os.close(file)
    except OSError as error:
        raise FileElsewhereError(f"the learner's file is not here: {error}") from error


def version_message(version: PolicyVersion) -> dialogue_pb2.PolicyVersion:
    """A version as the wire has it."""
    return dialogue_pb2.PolicyVersion(generation=version.generation, number=version.number)
