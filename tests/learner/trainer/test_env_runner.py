"""Changes are handed out once each, those of a turn only when its window has closed."""

import pickle
from typing import Any

import numpy as np
import pytest

from tests.learner.trainer.facts import make_domain
from turnwise_learner.trainer import env_runner
from turnwise_learner.trainer.algorithm import TurnwiseDQNConfig
from turnwise_learner.trainer.env_runner import JournalEnvRunner
from turnwise_learner.trainer.turns import Change, Correction, TurnRecord


class Feed:
    """Changes by hand."""

    journal_id = "j"

    def __init__(self, *changes: Change) -> None:
        self.changes = changes

    def read(self, cursor: int, wait_s: float, most: int) -> list[Change]:
        return [change for change in self.changes if change.cursor > cursor]


def test_what_waited_is_handed_out_before_what_came_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100]
    monkeypatch.setattr(env_runner, "_now_ms", lambda: now[0])
    runner: Any = JournalEnvRunner(config=TurnwiseDQNConfig.for_domain(make_domain()))
    feed = Feed(Change(1, due_ms=200), Change(2))
    runner.attach(feed)
    assert [change.cursor for change in runner.sample()] == [2]
    assert runner.handed_out_through == 0, "the first fact is still to be learned"
    now[0], feed.changes = 300, (*feed.changes, Change(3, due_ms=250))
    assert [change.cursor for change in runner.sample()] == [1, 3]
    assert runner.handed_out_through == 3


def test_what_is_held_for_a_window_outlives_a_checkpoint() -> None:
    record = TurnRecord("a", None, np.ones(2, bool), 1, 0.5, corrections=(Correction("ann", 1, 0),))
    again = pickle.loads(pickle.dumps(record))
    assert record.__getstate__()[:2] == ["a", None]  # a list, as dataclasses that are frozen make it
    assert [again.decision_id, again.action, again.corrections] == ["a", 1, (Correction("ann", 1, 0),)]
