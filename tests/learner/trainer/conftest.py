"""One Ray for all tests of the trainer, in this process."""

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def _ray() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        import torch

        from turnwise_learner.trainer.ray_cluster import start_ray

        torch.set_num_threads(1)
        start_ray(learners=2)
        yield
        ray.shutdown()
