"""One child process: started again at once, and ever later where it dies again and again."""

import pytest

from tests.waiting import eventually
from turnwise_deploy import child
from turnwise_deploy.child import BACKOFF_S, Child


@pytest.fixture
def dying(tmp_path):
    """A child that ends by itself."""
    return Child("it", ("-c", "pass"), tmp_path / "it.log")


def die(dying: Child) -> None:
    dying.start()
    eventually(lambda: dying.poll() is not None)


def test_what_dies_again_and_again_waits_longer_each_time(dying):
    waits = []
    for _ in range(len(BACKOFF_S) + 1):
        die(dying)
        waits.append(dying.backoff_s)
    assert waits == [*BACKOFF_S, BACKOFF_S[-1]]
    assert not dying.due


def test_earlier_deaths_of_what_has_lived_long_enough_are_forgotten(dying, monkeypatch):
    for _ in range(3):
        die(dying)
    monkeypatch.setattr(child, "STEADY_S", 0.0)
    die(dying)
    assert dying.backoff_s == BACKOFF_S[0]
    eventually(lambda: dying.due)
