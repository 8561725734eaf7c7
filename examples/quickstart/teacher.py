"""A teacher for the quickstart bot: says phrases, rates the answers, and examines what was learned."""

import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

import turnwise

LEARN_WAIT_S = 2.0
"""After so long without news of a lesson the teacher goes on; `unlearned` counts it."""


def load_phrases(path: Path) -> dict[str, str]:
    """Phrase to the id of its right action."""
    phrases = yaml.safe_load(path.read_text())
    return {str(phrase): str(action) for phrase, action in phrases.items()}


@dataclass
class Teacher:
    """Talks in dialogues of one to three turns: +1 for the right answer, -1 for any other."""

    bot: turnwise.Client
    phrases: dict[str, str]
    seed: int
    ratings: int = 0
    turns: int = 0
    verdicts: list[bool] = field(default_factory=list)
    """Of every rating so far: was the answer right?"""
    version: str = ""
    """Of the policy that answered last."""
    unlearned: int = 0
    """Lessons that no answering policy had learned in time."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._words = sorted(self.phrases)

    def dialogue(self) -> None:
        """One dialogue; after each lesson the teacher waits until the bot has learned it."""
        with self.bot.dialogue(user="teacher") as talk:
            for _ in range(self._random.randint(1, 3)):
                phrase = self._random.choice(self._words)
                turn = talk.act(text=phrase)
                right = turn.action == self.phrases[phrase]
                receipt = turn.reward(+1 if right else -1)
                self.turns += 1
                self.ratings += 1
                self.verdicts.append(right)
                self.version = str(turn.policy_version)
                self._wait_until_learned(phrase, receipt)
            talk.end(outcome="goodbye")

    def examine(self) -> int:
        """How many phrases are answered right by a policy that explores no more. Teaches nothing."""
        right = 0
        with self.bot.dialogue(user="examiner", mode="evaluate") as talk:
            for phrase in self._words:
                right += talk.act(text=phrase).action == self.phrases[phrase]
        return right

    def _wait_until_learned(self, phrase: str, receipt: turnwise.Receipt) -> None:
        """Asks in a dialogue that teaches nothing until a policy answers that has seen the lesson."""
        deadline = time.monotonic() + LEARN_WAIT_S
        with self.bot.dialogue(user="teacher", mode="evaluate") as probe:
            while probe.act(text=phrase).learned_through < receipt.journal_cursor:
                if time.monotonic() > deadline:
                    self.unlearned += 1
                    return
                time.sleep(0.01)
