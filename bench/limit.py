"""The information limit: how few lessons the best possible pupil needs.

It begins with a uniform prior over the right answer of each phrase, follows Bayes' rule with the true rate
of flipped ratings, and answers with the likeliest action; ties go to the first in its order. Since answers
are uniform and phrases unrelated, no order of trying is better than another: the limit may try in the order
of the learner it is compared with, so that both have the same luck.
"""

import asyncio
from collections.abc import Sequence

import numpy as np

from course import Course, Ints, Task, take


class BayesPupil:
    """The posterior-greedy pupil."""

    def __init__(self, task: Task, ties: Ints | None = None) -> None:
        self._ties = task.ties if ties is None else ties
        self._log_p = np.zeros((len(task.phrases), task.actions))
        with np.errstate(divide="ignore"):
            self._log_honest, self._log_flipped = np.log(1 - task.flip_rate), np.log(task.flip_rate)
        self._answers: list[int] = self._ties[:, 0].tolist()
        self._asked = (0, 0)

    async def ask(self, phrase: int) -> int:
        """The likeliest action."""
        self._asked = (phrase, self._answers[phrase])
        return self._answers[phrase]

    async def learn(self, rating: float, correction: int | None) -> bool:
        """Bayes' rule, for the one phrase."""
        phrase, action = self._asked
        log_p = self._log_p[phrase]
        for_action, for_others = self._log_honest, self._log_flipped
        if rating < 0:
            for_action, for_others = for_others, for_action
        others = np.arange(len(log_p)) != action
        log_p[others] += for_others
        log_p[action] += for_action
        if correction is not None:
            log_p[np.arange(len(log_p)) != correction] = -np.inf
        order = self._ties[phrase]
        # Rounded: equally likely actions must tie, in whatever order their evidence came.
        self._answers[phrase] = int(order[np.argmax(np.round(log_p[order], 6))])
        return True

    async def examine(self) -> Sequence[int]:
        """What it would answer."""
        return self._answers


def limit(task: Task, ties: Ints | None = None, threshold: float = 0.95) -> int:
    """Lessons to the threshold."""
    course = course_of_limit(task, ties, threshold)
    reached = course.reached(threshold)
    if reached is None:
        raise ValueError(f"{len(course.scores)} lessons are not enough for the best possible pupil")
    return reached


def course_of_limit(task: Task, ties: Ints | None = None, threshold: float = 0.95) -> Course:
    """The best possible pupil's whole course."""
    return asyncio.run(take(task, BayesPupil(task, ties), threshold, len(task.order)))
