"""Publishing: policy files that are complete or absent, numbered within a generation."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from turnwise_actor.policy import Exploration, Policy, PolicyVersion, policy_files

_LATEST = "LATEST"
_ASIDE = ".aside-"
_FEWEST = 5
"""Kept whatever their size: who was told of a policy has time to open its file."""


class VersionFolder:
    """Writes each policy version to `policies/<generation>.<number>.safetensors`, the link LATEST last.

    Files are not fsynced: after a power cut the checkpoint makes the next version anyway. The newest `keep`
    stay, fewer where they would take more than `keep_bytes` together.
    """

    def __init__(
        self, root: Path, fingerprint: str, generation: int, keep: int = 50, keep_bytes: int = 256 << 20
    ) -> None:
        self._root = root
        self._fingerprint = fingerprint
        self._keep, self._keep_bytes = keep, keep_bytes
        self.version = PolicyVersion(generation, 0)
        root.mkdir(parents=True, exist_ok=True)
        for aside in root.glob(f"{_ASIDE}*"):  # of a process that was killed while it wrote
            aside.unlink()
        self._files = deque(policy_files(root).values())

    def begin(self, generation: int) -> None:
        """Numbers from 1 again, under a new generation."""
        self.version = PolicyVersion(generation, 0)

    def publish(self, algorithm: Any, exploration: Exploration) -> Path:
        """Writes the algorithm's online network as the next version."""
        self.version = PolicyVersion(self.version.generation, self.version.number + 1)
        policy = Policy(
            version=self.version,
            learned_through=algorithm.pacer.learned_through,
            fingerprint=self._fingerprint,
            spec=algorithm.module.spec,
            parameters=algorithm.module.policy_parameters(),
            exploration=exploration,
            updates=algorithm.learner.updates,
        )
        path = self._root / f"{self.version}.safetensors"
        # Before, not after: the new file gets the memory of the old one, while the system still has it.
        self._make_room(4 * policy.spec.parameter_count)
        with self._aside(path).open("wb") as file:
            policy.write(file)
        self._aside(path).replace(path)
        # A link, because a file that takes another's place is written to the disk at once.
        latest = self._root / _LATEST
        self._aside(latest).symlink_to(path.name)
        self._aside(latest).replace(latest)
        self._files.append(path)
        return path

    def _make_room(self, size_bytes: int) -> None:
        """For one more of this size."""
        kept = min(self._keep, max(_FEWEST, self._keep_bytes // size_bytes))
        while len(self._files) >= kept:
            self._files.popleft().unlink(missing_ok=True)

    def _aside(self, path: Path) -> Path:
        return path.with_name(f"{_ASIDE}{path.name}")
