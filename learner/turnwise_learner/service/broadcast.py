"""The newest policy, in pieces that all subscribers share."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.policy import Policy, PolicyFileError, PolicyVersion, policy_files

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PolicyOnAir:
    """A policy file as it is sent."""

    version: PolicyVersion
    learned_through: int
    chunks: tuple[training_pb2.PolicyChunk, ...]

    @classmethod
    def of(cls, version: PolicyVersion, learned_through: int, data: bytes) -> "PolicyOnAir":
        """Cuts a file into chunks."""
        wire = dialogue_pb2.PolicyVersion(generation=version.generation, number=version.number)
        chunks = tuple(
            training_pb2.PolicyChunk(
                version=wire,
                learned_through=learned_through,
                offset=offset,
                total=len(data),
                data=data[offset : offset + CHUNK_BYTES],
            )
            for offset in range(0, len(data), CHUNK_BYTES)
        )
        return cls(version, learned_through, chunks)


class Broadcast:
    """Holds the newest policy and wakes those who wait for a newer one.

    A subscriber who is slow skips the versions that came meanwhile; nothing is queued for it.
    """

    def __init__(self) -> None:
        self.current: PolicyOnAir | None = None
        self._changed = asyncio.Event()
        self._closed = False

    def put(self, policy: PolicyOnAir) -> bool:
        """Puts a policy on air unless a newer one is; False: it was not newer."""
        if self.current is not None and policy.version <= self.current.version:
            return False
        self.current = policy
        self._wake()
        return True

    def close(self) -> None:
        """Subscribers end once they have the newest."""
        self._closed = True
        self._wake()

    async def newer_than(self, have: PolicyVersion) -> AsyncIterator[PolicyOnAir]:
        """The newest policy at once if it is newer than `have`, then each newer one, until `close`."""
        while True:
            changed, policy = self._changed, self.current
            if policy is not None and policy.version > have:
                have = policy.version
                yield policy
            elif self._closed:
                return
            else:
                await changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def newest_policy(folder: Path, fingerprint: str) -> tuple[Path, Policy] | None:
    """The newest policy file of a folder: the one LATEST names, else the highest version.

    Files that are broken or belong to another domain are passed over with a warning.
    """
    for path in _candidates(folder):
        try:
            policy = Policy.from_bytes(path.read_bytes())
        except (OSError, PolicyFileError) as error:
            log.warning("policy file %s is passed over: %s", path, error)
            continue
        if policy.fingerprint == fingerprint:
            return path, policy
        log.warning("policy file %s is of domain %s, wanted %s", path, policy.fingerprint, fingerprint)
    return None


def _candidates(folder: Path) -> list[Path]:
    by_version = [*policy_files(folder).values()][::-1]
    latest = folder / "LATEST"
    if not latest.exists():
        return by_version
    named = folder / latest.read_text().strip()
    return [named, *(path for path in by_version if path != named)]
