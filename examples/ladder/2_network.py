"""Rung 2: the table becomes a network, and the loop becomes a service.

The states are the same twenty words, given in a slot: one input each. What was one process is now three, a
learner, an actor and this script, which could as well be a chat frontend on another machine.

    python examples/ladder/2_network.py
"""

from typing import Any

from lessons import HERE, State, Teacher, new_bot, options, report


def asks(state: State) -> dict[str, Any]:
    """What the bot is shown of a state."""
    return {"slots": {"word": state["word"]}}


def main() -> None:
    """Teaches, and prints the curve."""
    given = options(__doc__)
    with new_bot(HERE / "network.yaml") as bot:
        teacher = Teacher(bot, asks, given.seed)
        teacher.teach(given.lessons)
    report(teacher.curve)


if __name__ == "__main__":
    main()
