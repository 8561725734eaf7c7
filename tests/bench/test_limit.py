"""The best possible pupil needs as many lessons as the benchmark's protocol says."""

import asyncio
from typing import Any

import numpy as np
import pytest

from course import Course, first_of_streak, make_task, take
from limit import BayesPupil, course_of_limit, limit

SEEDS = 1000


def middle(needed: list[int]) -> float:
    """The median, made smooth: the mean of the middle tenth."""
    return float(np.mean(sorted(needed)[len(needed) * 9 // 20 : len(needed) * 11 // 20]))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("task", "seeds", "to_90", "to_95"),
    [({}, 1500, 177, 202), ({"corrected": True}, 6000, 39, 49), ({"flip_rate": 0.1}, 1500, 280, 332)],
    ids=["rewards", "corrections", "noisy"],
)
def test_the_limit_is_the_one_of_the_protocol(
    task: dict[str, Any], seeds: int, to_90: int, to_95: int
) -> None:
    courses = [course_of_limit(make_task(seed, **task)) for seed in range(seeds)]
    assert middle([course.reached(0.9) or 0 for course in courses]) == pytest.approx(to_90, rel=0.03)
    assert middle([course.reached(0.95) or 0 for course in courses]) == pytest.approx(to_95, rel=0.03)


def test_the_order_of_trying_makes_no_difference_on_average() -> None:
    backwards = [limit(task, task.ties[:, ::-1]) for task in map(make_task, range(SEEDS))]
    assert middle(backwards) == pytest.approx(202, rel=0.03)


def test_a_seed_is_the_same_task_every_time_and_seeds_differ() -> None:
    first, again, other = make_task(7), make_task(7), make_task(8)
    assert first.phrases == again.phrases
    assert (first.order == again.order).all()
    assert (first.answers == again.answers).all()
    assert first.phrases != other.phrases
    assert len(set(first.phrases)) == 20


def test_flips_and_corrections_leave_phrases_answers_and_order_alone() -> None:
    plain, noisy = make_task(7), make_task(7, flip_rate=0.1, corrected=True)
    assert plain.phrases == noisy.phrases
    assert (plain.answers == noisy.answers).all()
    assert (plain.order == noisy.order).all()
    assert noisy.flips.mean() == pytest.approx(0.1, abs=0.01)
    assert not plain.flips.any()


def test_the_first_of_twenty_lessons_in_a_row_counts() -> None:
    assert first_of_streak([19] * 5 + [18] + [19] * 20, 19) == 7
    assert first_of_streak([19] * 19, 19) is None


def test_the_limit_that_tries_as_the_pupil_did_needs_as_many_lessons() -> None:
    task = make_task(3)
    course: Course = asyncio.run(take(task, BayesPupil(task), 0.95, 5000))
    assert limit(task, course.first_tries()) == course.reached(0.95)


def test_paraphrases_share_an_answer_and_a_limit() -> None:
    task = make_task(5, wordings=3)
    assert len(task.phrases) == 60
    assert task.meanings is not None
    for meaning in range(20):
        assert len(set(task.answers[task.meanings == meaning].tolist())) == 1
    by_meaning = task.by_meaning()
    assert len(by_meaning.phrases) == 20
    assert limit(by_meaning) < limit(task) / 2
