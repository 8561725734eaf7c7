"""What somebody writes in ten minutes: it asks for what is missing and books. It starts the bot off."""

from collections.abc import Mapping

from person import SLOTS


def rule(seen: Mapping[str, str | bool]) -> str:
    """The action for what the bot sees."""
    if seen["intent"] == "greet":
        return "greet"
    for slot in SLOTS:
        if slot not in seen:
            return f"ask_{slot}"
    return "suggest_time" if seen["table"] == "full" else "book"
