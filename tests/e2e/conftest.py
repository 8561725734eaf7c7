"""One deployment for all tests of a module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.deployment import deployed
from turnwise_deploy.local import LocalDeployment


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its data folder."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def up(data: Path) -> Iterator[LocalDeployment]:
    """A learner and two actors."""
    with deployed(data) as deployment:
        yield deployment
