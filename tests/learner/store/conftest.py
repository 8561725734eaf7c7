"""Stores of both kinds, and a journal that tests write to."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.learner.store.journal import Written
from tests.object_store import _cloud, buckets  # noqa: F401 fixtures
from turnwise_learner.store.objects import ObjectStore


@pytest.fixture(params=["folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that is empty."""
    if request.param == "folder":
        return str(tmp_path / "store")
    server = request.getfixturevalue("buckets")
    return server.uri(server.create())


@pytest.fixture
def store(uri: str) -> ObjectStore:
    return ObjectStore.open(uri)


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Callable[[str], Written]]:
    """Journals in data folders, by their names."""
    journals: dict[str, Written] = {}

    def journal(name: str = "data") -> Written:
        if name not in journals:
            journals[name] = Written(tmp_path / name)
        return journals[name]

    yield journal
    for each in journals.values():
        each.close()
