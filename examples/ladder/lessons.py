"""What rungs 2 and 3 share: the states, a bot in a folder of its own, and a teacher who says yes or no."""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import turnwise
from turnwise_deploy.local import LocalConfig, LocalDeployment

HERE = Path(__file__).resolve().parent
STATES = 20
EVERY = 5
"""Lessons from one examination to the next."""
HOLDS = 20
"""Lessons for which 95 % must hold before they count as reached."""
LIMIT = 210
"""Lessons that a table needs (rung 1, the median)."""
LEARN_WAIT_S = 30.0

State = Mapping[str, str]
"""One entry of states.yaml."""


def states() -> list[State]:
    """Those of rung 1."""
    entries: list[State] = yaml.safe_load((HERE / "states.yaml").read_text())
    return entries


def options(about: str | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lessons", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@contextmanager
def new_bot(domain: Path) -> Iterator[turnwise.Client]:
    """A bot that has learned nothing: a learner and an actor, gone again at the end.

    `turnwise up --domain … --data …` in a terminal does the same and keeps what was learned.
    """
    with tempfile.TemporaryDirectory() as data:
        config = LocalConfig(domain=domain, data=Path(data), port=0, learner_port=0)
        with LocalDeployment(config) as up, turnwise.Client(up.actors) as bot:
            yield bot


@dataclass
class Teacher:
    """Gives lessons, and counts every few of them how many states are answered right.

    `asks` makes of a state what the bot is shown: the arguments of `act`.
    """

    bot: turnwise.Client
    asks: Any
    seed: int
    curve: list[int] = field(default_factory=list)

    def teach(self, lessons: int) -> None:
        """As many lessons as wanted, or until 95 % have held."""
        chance = random.Random(self.seed)
        known = states()
        self.curve.append(self.examine(known))
        while EVERY * (len(self.curve) - 1) < lessons and lessons_to_95(self.curve) is None:
            for _ in range(EVERY):
                receipt = self.lesson(chance.choice(known))
                self.wait_until_learned(known[0], receipt)
            self.curve.append(self.examine(known))

    def lesson(self, state: State) -> turnwise.Receipt:
        """One dialogue of one turn, rated: yes or no, never what would have been right."""
        with self.bot.dialogue(user="teacher") as talk:
            turn = talk.act(**self.asks(state))
            receipt = turn.reward(+1 if turn.action == state["action"] else -1)
            talk.end(outcome="goodbye")
        return receipt

    def examine(self, known: Sequence[State]) -> int:
        """How many states are answered right. Teaches nothing."""
        with self.bot.dialogue(user="examiner", mode="evaluate") as talk:
            return sum(talk.act(**self.asks(state)).action == state["action"] for state in known)

    def wait_until_learned(self, state: State, receipt: turnwise.Receipt) -> None:
        """Returns when the answers come from a policy that has learned the lesson.

        Raises:
            TimeoutError: None does, although it should take a twentieth of a second.
        """
        deadline = time.monotonic() + LEARN_WAIT_S
        while self._learned_through(state) < receipt.journal_cursor:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no policy has learned the lesson within {LEARN_WAIT_S:.0f} s")
            time.sleep(0.01)

    def _learned_through(self, state: State) -> int:
        with self.bot.dialogue(user="examiner", mode="evaluate") as talk:
            return talk.act(**self.asks(state)).learned_through


def lessons_to_95(curve: Sequence[int]) -> int | None:
    """The first lesson from which 95 % held."""
    good = [right >= 0.95 * STATES for right in curve]
    held = HOLDS // EVERY
    return next((EVERY * n for n in range(len(good) - held) if all(good[n : n + held + 1])), None)


def report(curve: Sequence[int]) -> None:
    """Prints the curve, the lessons needed, and the limit beside them."""
    for exam in range(0, len(curve), max(1, len(curve) // 15)):
        right = curve[exam]
        print(f"{EVERY * exam:4} {'#' * right}{'.' * (STATES - right)} {right:2} of {STATES}")
    print(f"lessons to 95 %: {lessons_to_95(curve) or f'not within {EVERY * (len(curve) - 1)}'}")
    print(f"limit: {LIMIT}, what a table needs")
