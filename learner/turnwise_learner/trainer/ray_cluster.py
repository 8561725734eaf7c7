"""Whether the trainer has a Ray cluster behind it. RLlib wants one even when every component is local."""

from __future__ import annotations

import logging
import os
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


logger = logging.getLogger(__name__)


def start_ray(learners: int = 0) -> None:
    """Starts a Ray of this process's own; tries it once more where Ray's first process does not come up.

    Args:
        learners: Remote ones, which need a CPU each.
    """
    # Chosen for our own gRPC (`turnwise_actor/__init__.py`), not for the one that is built into Ray.
    chosen = os.environ.pop("GRPC_EXPERIMENTS", None)
    try:
        _start(learners)
    except RuntimeError as error:
        logger.warning("Ray did not start, and is started again: %s", error)
        ray.shutdown()
        _start(learners)
    finally:
        if chosen is not None:
            os.environ["GRPC_EXPERIMENTS"] = chosen


def _start(learners: int) -> None:
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
