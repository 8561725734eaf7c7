"""The newest policy, in pieces that all subscribers share."""

import asyncio
import logging
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.policy import Policy, PolicyFileError, PolicyVersion, policy_files

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20


class PolicyOnAir:
    """A policy file that subscribers are told of, or sent.

    Args:
        version: What it holds.
        learned_through: Journal position whose lessons are in it.
        path: The file, complete.

    Raises on construction: OSError, ValueError: there is no such file.
    """

    def __init__(self, version: PolicyVersion, learned_through: int, path: Path) -> None:
        self.version, self.learned_through = version, learned_through
        self._path = path.absolute()
        found = self._path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(f"{path} is no regular file")
        wire = dialogue_pb2.PolicyVersion(generation=version.generation, number=version.number)
        self._head = training_pb2.PolicyChunk(
            version=wire, learned_through=learned_through, total=found.st_size
        )
        self.notice = training_pb2.PolicyChunk(
            version=wire,
            learned_through=learned_through,
            total=found.st_size,
            file=training_pb2.PolicyFile(
                path=str(self._path),
                device=found.st_dev,
                inode=found.st_ino,
                modified_ns=found.st_mtime_ns,
            ),
        )
        """For those who see this disk."""
        self._reading: asyncio.Task[tuple[training_pb2.PolicyChunk, ...]] | None = None

    async def chunks(self) -> tuple[training_pb2.PolicyChunk, ...]:
        """The file in pieces, read once for all who want it.

        Raises:
            OSError: It is gone: many newer ones have come since.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(asyncio.to_thread(self._cut))
        return await asyncio.shield(self._reading)

    def _cut(self) -> tuple[training_pb2.PolicyChunk, ...]:
        data, chunks = self._path.read_bytes(), []
        for offset in range(0, len(data), CHUNK_BYTES):
            chunk = training_pb2.PolicyChunk(offset=offset, data=data[offset : offset + CHUNK_BYTES])
            chunk.MergeFrom(self._head)
            chunks.append(chunk)
        return tuple(chunks)


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
    # A link, or as it once was a file with the name in it.
    named = folder / (latest.readlink() if latest.is_symlink() else latest.read_text().strip())
    return [named, *(path for path in by_version if path != named)]
