"""Rung 1: the whole method in one file. A table, twenty states, ten actions, +1 and -1.

The bot hears a word and answers with one. You say whether that was right, never what would have been right.

    python examples/ladder/1_tabular.py              # a scripted teacher
    python examples/ladder/1_tabular.py --by-hand    # you are the teacher
"""

import argparse
import random
from collections.abc import Callable
from statistics import median

RIGHT = {
    "hello": "greet", "morning": "greet",
    "bye": "part", "thanks": "part",
    "show": "offer", "seats": "offer",
    "cancel": "cancel", "refund": "cancel",
    "tomorrow": "move", "later": "move",
    "shirt": "size", "hoodie": "size",
    "cost": "price", "expensive": "price",
    "open": "hours", "sunday": "hours",
    "terrible": "sorry", "waited": "sorry",
    "human": "human", "invoice": "human",
}  # fmt: skip
"""What a person says, and the one right answer."""
ACTIONS = sorted(set(RIGHT.values()))

UNTRIED = 0.0
"""The value of what nobody has tried: above wrong (-1), below right (+1). This makes the bot explore."""
ALPHA = 0.5
"""How far a value moves towards what was just learned."""
GAMMA = 0.0
"""How much the next turn counts. 0: people rate every turn, so each is judged alone."""

HOLDS = 20
"""Lessons for which 95 % must hold before they count as reached."""

Table = dict[str, dict[str, float]]
Teacher = Callable[[str, str], float]


def act(q: Table, state: str, chance: random.Random) -> str:
    """The best action, ties by lot. There is no other exploration: a wrong answer sinks below the untried."""
    best = max(q[state].values())
    return chance.choice([action for action, value in q[state].items() if value == best])


def learn(q: Table, state: str, action: str, reward: float, following: str) -> None:
    """Watkins' Q-learning: Q(s, a) moves towards r + gamma max Q(s', .)."""
    target = reward + GAMMA * max(q[following].values())
    q[state][action] += ALPHA * (target - q[state][action])


def right_now(q: Table, chance: random.Random) -> int:
    """How many states are answered right."""
    return sum(act(q, state, chance) == RIGHT[state] for state in q)


def teach(seed: int, lessons: int, teacher: Teacher) -> list[int]:
    """Gives lessons; how many states were answered right before the first and after each."""
    chance = random.Random(seed)
    q: Table = {state: dict.fromkeys(ACTIONS, UNTRIED) for state in RIGHT}
    curve = [right_now(q, chance)]
    state = chance.choice(list(RIGHT))
    for _ in range(lessons):
        action = act(q, state, chance)
        reward = teacher(state, action)
        following = chance.choice(list(RIGHT))
        learn(q, state, action, reward, following)
        state = following
        curve.append(right_now(q, chance))
    return curve


def lessons_to_95(curve: list[int]) -> int | None:
    """The first lesson from which 95 % held."""
    good = [right >= 0.95 * len(RIGHT) for right in curve]
    return next((n for n in range(len(good) - HOLDS) if all(good[n : n + HOLDS + 1])), None)


def scripted(state: str, action: str) -> float:
    """A teacher who knows the right answers."""
    return 1.0 if action == RIGHT[state] else -1.0


def by_hand(state: str, action: str) -> float:
    """You."""
    return 1.0 if input(f"you> {state}\nbot> {action}\n     right? [y/N] ").startswith(("y", "+")) else -1.0


def bar(right: int) -> str:
    """One line of the curve."""
    return "#" * right + "." * (len(RIGHT) - right)


def main() -> None:
    """Teaches, and prints the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lessons", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--by-hand", action="store_true", help="you rate the answers")
    options = parser.parse_args()
    curve = teach(options.seed, options.lessons, by_hand if options.by_hand else scripted)
    for lesson in range(0, len(curve), max(1, options.lessons // 15)):
        print(f"{lesson:4} {bar(curve[lesson])} {curve[lesson]:2} of {len(RIGHT)}")
    reached = lessons_to_95(curve)
    print(f"lessons to 95 %: {reached or f'not within {options.lessons}'}")
    # A table never forgets and never tries twice what was wrong: nobody learns faster from yes and no alone
    # unless one state tells something about another. So this is the limit for the next rungs.
    limit = median(lessons_to_95(teach(seed, 600, scripted)) or 600 for seed in range(100))
    print(f"limit: {limit:.0f}, the median of 100 tables")


if __name__ == "__main__":
    main()
