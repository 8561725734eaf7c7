"""One Ray for all tests of the trainer, in this process."""

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def _ray() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        from turnwise_learner.trainer.training import start_ray

        start_ray(learners=2)
        yield
        ray.shutdown()
