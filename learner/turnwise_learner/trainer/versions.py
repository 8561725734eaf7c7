"""Publishing: policy files that are complete or absent, numbered within a generation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from turnwise_actor.policy import Exploration, Policy, PolicyVersion, policy_files

_LATEST = "LATEST"
_ASIDE = ".aside-"


class VersionFolder:
    """Writes each policy version to `policies/<generation>.<number>.safetensors`, LATEST last.

    Files are not fsynced: after a power cut the checkpoint makes the next version anyway.
    """

    def __init__(self, root: Path, fingerprint: str, generation: int, keep: int = 50) -> None:
        self._root = root
        self._fingerprint = fingerprint
        self._keep = keep
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
        _replace(path, policy.parts())
        _replace(self._root / _LATEST, [path.name.encode()])
        self._files.append(path)
        while len(self._files) > self._keep:
            self._files.popleft().unlink(missing_ok=True)
        return path


def _replace(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    aside = path.with_name(f"{_ASIDE}{path.name}")
    with aside.open("wb") as file:
        file.writelines(parts)
    aside.replace(path)
