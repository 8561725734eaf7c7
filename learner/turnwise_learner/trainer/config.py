"""Configuration of the trainer process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainerConfig:
    """One per process; what is learned, and how, is in the domain."""

    data: Path
    domain: Path
    service: str
    checkpoint_every_s: float = 300.0
    """Longest time between two checkpoints while anything changes; a crash costs at most this much training,
    never a fact."""
    checkpoint_every_turns: int = 1000
    """Confirmed turns after which a checkpoint is saved earlier, unless saving would then take more than a
    fiftieth of the time."""
    keep_checkpoints: int = 5
    """Newest checkpoints kept, besides one a day and the pinned ones."""
    publish_every_s: float = 0.05
    """Shortest time between two policy versions."""
    report_every_s: float = 0.2
    idle_wait_s: float = 0.25
    """How long the loop waits for the journal when there is nothing to do; a lesson wakes it at once."""
    tensorboard: bool = True
    """Whether reports are written as TensorBoard event files, under logs/tensorboard of the data folder."""
    parent_pid: int = 0
    log_level: str = "info"

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_s", "checkpoint_every_turns", "keep_checkpoints"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted more than 0")
