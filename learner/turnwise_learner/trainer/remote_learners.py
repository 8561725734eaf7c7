"""RLlib's remote learners (`num_learners`) with the face of the local one.

Each holds the whole network and takes its part of every batch; their gradients are averaged, see
`TurnwiseTorchLearner`. For networks that one device is too slow for: a small one learns slower so, since each
update waits for all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from turnwise_learner.trainer.rl_module import TurnwiseDQNModule

_BATCHES_A_CALL = 16
"""Drawn before any of them is learned: more would be drawn by older priorities."""

Batch = tuple[np.ndarray, dict[str, np.ndarray]]


class _Told(NamedTuple):
    """What a learner says after a call."""

    rank: int
    errors: list[np.ndarray]
    updates: int
    skipped_batches: int
    losses: dict[str, float]


class RemoteLearners:
    """All learners of a group, in step with each other.

    Args:
        group: RLlib's group of remote learners.
        module: Of this process; given their parameters when it is asked for.
    """

    def __init__(self, group: Any, module: TurnwiseDQNModule) -> None:
        self._group = group
        self._module = module
        self._behind = True
        self.metrics = MetricsLogger()
        self.updates = 0
        self.skipped_batches = 0
        self.last_losses: dict[str, float] = {}
        self.read()

    def read(self) -> None:
        """Asks where they are; to be called after a restore."""
        self._ask([])

    @property
    def module(self) -> dict[str, TurnwiseDQNModule]:
        """The online network, as it is now."""
        if self._behind:
            self._module.set_state(self._group.get_weights()[DEFAULT_MODULE_ID])
            self._behind = False
        return {DEFAULT_MODULE_ID: self._module}

    def update_many(self, batches: Iterable[Batch]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As the local learner's, of some batches at a time."""
        drawn = iter(batches)
        while some := list(islice(drawn, _BATCHES_A_CALL)):
            told = self._ask(some)
            for index, (rows, _) in enumerate(some):
                parts = [rows[each.rank :: len(told)] for each in told]
                yield np.concatenate(parts), np.concatenate([each.errors[index] for each in told])

    def log_losses(self) -> None:
        """Tells RLlib's metrics the terms of the loss."""
        self.metrics.log_dict(self.last_losses, key=DEFAULT_MODULE_ID, window=1)

    def _ask(self, batches: list[Batch]) -> list[_Told]:
        told = [
            result.get() for result in self._group.foreach_learner(functools.partial(_learn, batches=batches))
        ]
        self.updates, self.skipped_batches = told[0].updates, told[0].skipped_batches
        self.last_losses = told[0].losses
        self._behind = True
        return told


def _learn(learner: Any, batches: list[Batch]) -> _Told:
    """In a learner's process: its part of each batch, with all others in step."""
    rank, learners = torch.distributed.get_rank(), torch.distributed.get_world_size()
    parts = [
        (rows[rank::learners], {name: column[rank::learners] for name, column in columns.items()})
        for rows, columns in batches
    ]
    errors = [error for _, error in learner.update_many(parts)]
    return _Told(rank, errors, learner.updates, learner.skipped_batches, learner.last_losses)
