"""Rung 3: the words become phrases, read by a text encoder.

Now one state tells something about another: at the end the bot is asked the same things in other words,
which nobody has taught it.

    python examples/ladder/3_text.py
"""

from typing import Any

from lessons import HERE, State, Teacher, new_bot, options, report, states


def asks(state: State) -> dict[str, Any]:
    """What the bot is shown of a state."""
    return {"text": state["phrase"]}


def asks_anew(state: State) -> dict[str, Any]:
    """The same in other words."""
    return {"text": state["anew"]}


def main() -> None:
    """Teaches, prints the curve, and asks in other words."""
    given = options(__doc__)
    with new_bot(HERE / "text.yaml") as bot:
        teacher = Teacher(bot, asks, given.seed)
        teacher.teach(given.lessons)
        anew = Teacher(bot, asks_anew, given.seed).examine(states())
    report(teacher.curve)
    print(f"in other words: {anew} of {len(states())} right")


if __name__ == "__main__":
    main()
