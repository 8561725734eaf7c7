"""What counts as a reaction, and where its time is said to go."""

import pytest

from reaction import NEVER_MS, Round, first_since, in_force, is_greedy, report_of, stages
from turnwise import PolicyVersion

LOG = """\
2026-01-02 03:04:05,250 INFO turnwise_actor.weights: policy 1.2 is in force, learned through 7
2026-01-02 03:04:05,300 INFO turnwise_actor.weights: policy 1.2 is not newer than 1.2 in force
2026-01-02 03:04:06,500 INFO turnwise_actor.uplink: the learner is there, epoch 1
2026-01-02 03:04:07,750 INFO turnwise_actor.weights: policy 1.10 is in force, learned through 9
"""


def flipped(ms: float) -> Round:
    one = Round(journal_ms=5.0, rated_at_s=100.0, flipped_at_s=100.0 + ms / 1000)
    one.stages_ms = stages(one, written_s=100.01, swapped_s=[100.04, 100.03, 100.02])
    return one


NEVER = Round(journal_ms=5.0, rated_at_s=100.0, flipped_at_s=None)


def test_an_action_that_shares_the_highest_value_is_still_greedy() -> None:
    assert is_greedy({"a": 0.0, "b": 0.0}, "a")
    assert is_greedy({"a": 0.1, "b": 0.0}, "a")
    assert not is_greedy({"a": -0.1, "b": 0.0}, "a")


def test_an_actors_log_says_when_each_policy_came_into_force() -> None:
    (first, at), (second, later) = in_force(LOG)
    assert (first, second) == (PolicyVersion(1, 2), PolicyVersion(1, 10))
    assert later - at == pytest.approx(2.5)


def test_an_actor_that_skipped_a_version_has_it_with_the_next() -> None:
    versions = [(PolicyVersion(1, 2), 1.0), (PolicyVersion(1, 10), 2.0), (PolicyVersion(2, 1), 3.0)]
    assert first_since(versions, PolicyVersion(1, 2)) == 1.0
    assert first_since(versions, PolicyVersion(1, 3)) == 2.0
    with pytest.raises(ValueError, match="empty"):
        first_since(versions, PolicyVersion(2, 2))


def test_the_stages_of_a_round_make_up_its_time() -> None:
    one = flipped(50.0)
    assert one.stages_ms == pytest.approx({"learn": 10, "publish": 10, "swap": 20, "answer": 10})
    assert sum(one.stages_ms.values()) == pytest.approx(one.total_ms)


def test_the_key_is_the_median_of_the_rounds() -> None:
    report = report_of([flipped(60), flipped(100), flipped(240)])
    assert report.ratios == {"median_ms": pytest.approx(100)}
    assert report.figures["never"] == 0
    assert report.ok


def test_a_round_that_never_flips_counts_as_infinite() -> None:
    report = report_of([flipped(60), NEVER, NEVER])
    assert report.ratios == {"median_ms": NEVER_MS}
    assert report.figures["never"] == 2
    assert report.figures["stages_ms"]["learn"] == pytest.approx(10)
    assert not report.ok
    assert not report_of([NEVER]).ok
