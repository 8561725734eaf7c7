"""What somebody writes in ten minutes: it asks for what is missing and books. It starts the bot off."""

from collections.abc import Mapping

from person import SLOTS


def rule(seen: Mapping[str, str | bool], reads_back: bool = False) -> str:
    """The action for what the bot sees; a careful clerk reads everything back before booking."""
    if seen["intent"] == "greet":
        return "greet"
    for slot in SLOTS:
        if slot not in seen:
            return f"ask_{slot}"
    if seen["table"] == "full":
        return "suggest_time"
    return "confirm" if reads_back and not seen["confirmed"] else "book"
