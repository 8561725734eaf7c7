"""One Ray for all tests of the trainer, in this process."""

import warnings
from collections.abc import Iterator

import pytest

RAY_TIMEOUT_S = 180
"""Ray waits half a minute for its first process, and is then started once more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(RAY_TIMEOUT_S))


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
