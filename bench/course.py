"""The protocol: a teacher gives lessons one by one and examines after each.

Letters: P phrases, A actions, N lessons. A pupil is whoever learns: the live service, the trainer's classes
alone, stock DQN, or the best possible one (`limit.py`); all of them take the same course.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import yaml

STREAK = 20
"""Lessons in a row that the accuracy must stay at or above the threshold."""
LONGEST = 20_000
"""Lessons that a task is made for."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """What one seed is to be taught: the same for every pupil."""

    seed: int
    phrases: tuple[str, ...]
    actions: int
    answers: Ints
    """[P] the right action of each phrase."""
    order: Ints
    """[N] the phrase of each lesson."""
    flips: npt.NDArray[np.bool_]
    """[N] whether the rating of the lesson is turned round."""
    ties: Ints
    """[P, A] the order in which equally likely actions are tried, where the pupil has no order of its own."""
    flip_rate: float = 0.0
    corrected: bool = False
    """Whether a wrong turn is corrected, besides being rated."""
    meanings: Ints | None = None
    """[P] phrases of one meaning have one answer; None: all differ."""

    def by_meaning(self) -> "Task":
        """The same lessons for a pupil that knows which phrases mean the same."""
        if self.meanings is None:
            return self
        _, first = np.unique(self.meanings, return_index=True)
        phrases = tuple(self.phrases[i] for i in first)
        order = self.meanings[self.order]
        return replace(
            self,
            phrases=phrases,
            answers=self.answers[first],
            order=order,
            ties=self.ties[first],
            meanings=None,
        )


class Pupil(Protocol):
    """Learns from a teacher, one turn at a time."""

    async def ask(self, phrase: int) -> int:
        """The action that answers this phrase, in a turn to be learned from."""
        ...

    async def learn(self, rating: float, correction: int | None) -> bool:
        """The verdict on the turn asked last; False: no lesson has been given yet, it will come later."""
        ...

    async def examine(self) -> Sequence[int]:
        """[P] the greedy answers to all phrases; teaches nothing."""
        ...


@dataclass
class Course:
    """How one pupil fared."""

    task: Task
    scores: list[int] = field(default_factory=list)
    """[N] phrases answered right after each lesson."""
    tried: list[tuple[int, int]] = field(default_factory=list)
    """[N] (phrase, action) of each lesson."""

    def reached(self, threshold: float) -> int | None:
        """The first of `STREAK` lessons in a row, counted from 1, with accuracy at or above the threshold."""
        return first_of_streak(self.scores, needed(threshold, len(self.task.phrases)))

    @property
    def wrong_answers(self) -> int:
        """Turns that were answered wrong while it was taught."""
        return sum(action != self.task.answers[phrase] for phrase, action in self.tried)

    def first_tries(self) -> Ints:
        """[P, A] the order in which the pupil first tried each action; the never tried follow as in ties."""
        tries: list[list[int]] = [[] for _ in self.task.phrases]
        for phrase, action in self.tried:
            if action not in tries[phrase]:
                tries[phrase].append(action)
        for own, spare in zip(tries, self.task.ties.tolist(), strict=True):
            own += [action for action in spare if action not in own]
        return np.array(tries, np.int64)


def needed(threshold: float, phrases: int) -> int:
    """Phrases that must be answered right."""
    return int(np.ceil(threshold * phrases - 1e-9))


def first_of_streak(scores: Sequence[int], least: int) -> int | None:
    """Lesson, counted from 1, that begins the first run of `STREAK` scores of at least `least`."""
    run = 0
    for n, score in enumerate(scores, 1):
        run = run + 1 if score >= least else 0
        if run == STREAK:
            return n - STREAK + 1
    return None


async def take(task: Task, pupil: Pupil, threshold: float, most: int) -> Course:
    """Gives lessons until the threshold is reached, at most `most`."""
    course = Course(task)
    least = needed(threshold, len(task.phrases))
    run = 0
    for n in range(len(task.order)):
        phrase, flip = int(task.order[n]), bool(task.flips[n])
        action = await pupil.ask(phrase)
        right = action == task.answers[phrase]
        rating = -1.0 if right == flip else 1.0
        given = await pupil.learn(rating, int(task.answers[phrase]) if task.corrected and not right else None)
        course.tried.append((phrase, action))
        if not given:
            continue
        score = int((np.asarray(await pupil.examine()) == task.answers).sum())
        course.scores.append(score)
        run = run + 1 if score >= least else 0
        if run == STREAK or len(course.scores) >= most:
            break
    return course


# Tasks

POOL = Path(__file__).with_name("phrases.yaml")


@cache
def pool() -> list[list[str]]:
    """Meanings, each with its wordings."""
    meanings: list[list[str]] = yaml.safe_load(POOL.read_text())
    return meanings


def make_task(
    seed: int,
    phrases: int = 20,
    actions: int = 10,
    flip_rate: float = 0.0,
    corrected: bool = False,
    wordings: int = 1,
) -> Task:
    """Fresh phrases, answers and order of a seed; `wordings` of each phrase share its answer."""
    rng = np.random.default_rng([seed, phrases, actions])
    known = [meaning for meaning in pool() if len(meaning) >= wordings]
    chosen = [known[i] for i in rng.permutation(len(known))[:phrases]]
    if len(chosen) < phrases:
        raise ValueError(f"the pool has {len(known)} meanings in {wordings} wordings; {phrases} are wanted")
    texts = tuple(text for meaning in chosen for text in rng.permutation(meaning)[:wordings].tolist())
    meanings = np.repeat(np.arange(phrases), wordings)
    return Task(
        seed=seed,
        phrases=texts,
        actions=actions,
        answers=rng.integers(0, actions, phrases)[meanings],
        order=rng.integers(0, len(texts), LONGEST),
        flips=rng.random(LONGEST) < flip_rate,
        ties=np.stack([rng.permutation(actions) for _ in texts]),
        flip_rate=flip_rate,
        corrected=corrected,
        meanings=meanings if wordings > 1 else None,
    )
