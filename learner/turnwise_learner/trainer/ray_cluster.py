"""Whether the trainer has a Ray cluster behind it. RLlib wants one even when every component is local."""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray.rllib.env import env_runner_group


def do_without_ray() -> None:
    """Has RLlib work in this process alone, as long as it has neither learners nor runners elsewhere.

    Of a cluster it needs nothing then but a place for two objects that runners elsewhere would fetch: its
    configuration, and the weights. A Ray of one's own for that is eight processes, half a gigabyte, and most
    of the seconds that a trainer takes to start.
    """
    env_runner_group.ray = _InThisProcess()


def start_ray(learners: int = 0) -> None:
    """Starts a Ray of this process's own.

    Args:
        learners: Remote ones, which need a CPU each.
    """
    ray.init(
        address="local",
        num_cpus=1 + learners,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=100 * 1024 * 1024,
    )


class _InThisProcess:
    """The `ray` that the group of runners sees: its object store is this process's memory."""

    @staticmethod
    def put(value: Any) -> Any:
        """A reference to the value: itself."""
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(ray, name)
