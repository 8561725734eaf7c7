"""What a learner is told of its store."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StoreConfig:
    """Where a learner's checkpoints and journal are copied to."""

    uri: str
    """A folder, or a URI that pyarrow.fs.FileSystem.from_uri takes."""
    every_s: float = 10.0
    """Between two looks at what is new: as much of what was acknowledged may go with the learner's disk."""
    keep_checkpoints: int = 5
    """Newest checkpoints kept, besides one a day and the pinned ones."""

    def __post_init__(self) -> None:
        for name in ("every_s", "keep_checkpoints"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted more than 0")
