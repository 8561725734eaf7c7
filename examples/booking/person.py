"""A person who wants a table: has a goal, changes it at times, and leaves when annoyed."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

SLOTS = ("people", "day", "time", "name")
VALUES = {
    "people": ("one", "two", "three", "four", "five", "six"),
    "day": ("tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "time": ("six", "seven", "eight", "nine", "ten"),
    "name": ("ann", "bob", "carol", "dave", "erin", "frank"),
}

OPENINGS = {"greet": 0.3, "request": 0.5, "ask_hours": 0.2}
CHANGES_MIND = 0.06
SAYS_MORE = 0.25
PATIENCE = (2, 3, 4)
"""Annoyances that a person puts up with, one of these at random; after one more the person leaves."""
HURRIED_AFTER_TURNS = 14
"""From then on every turn annoys."""


@dataclass(frozen=True)
class Said:
    """What a person says: an intent, and values of slots."""

    intent: str
    values: dict[str, str] = field(default_factory=dict)


class Understood(Protocol):
    """What the person can tell of the bot's understanding."""

    intent: str
    values: dict[str, str]
    sure: set[str]
    confirmed: bool


class Person:
    """Answers the bot's actions, until served or fed up.

    Attributes:
        goal: The table wanted, slot by slot; it may change on the way.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.goal = {slot: chance.choice(VALUES[slot]) for slot in SLOTS}
        self._annoyances = 0
        self._patience = chance.choice(PATIENCE)
        self._turns = 0
        self._question = False
        self._last = Said("greet")

    @property
    def annoyed(self) -> bool:
        """Whether the person has been annoyed."""
        return self._annoyances > 0

    @property
    def left(self) -> bool:
        """Whether the person has given up."""
        return self._annoyances > self._patience

    def opens(self) -> Said:
        """The first words."""
        intent = self._chance.choices(list(OPENINGS), list(OPENINGS.values()))[0]
        self._question = intent == "ask_hours"
        return self._say(intent, self._some(SLOTS, 0, 3) if intent == "request" else ())

    def answers(self, action: str, heard: Understood) -> Said:
        """What the person says to an action of the bot."""
        self._turns += 1
        self._annoyances += self._turns > HURRIED_AFTER_TURNS
        if heard.intent == "unclear":
            return self._repeats(annoyed=action != "ask_again")
        if self._question:
            return self._had_asked(action)
        if heard.values and self._chance.random() < CHANGES_MIND:
            return self._changes_mind()
        return self._replies(action, heard)

    def something_like(self, slot: str, value: str) -> str:
        """Another value, easily taken for this one."""
        return self._chance.choice([other for other in VALUES[slot] if other != value])

    def _replies(self, action: str, heard: Understood) -> Said:
        slot = action.removeprefix("ask_")
        missing = [name for name in SLOTS if name not in heard.sure]
        if slot in missing:
            more = [name for name in missing if name != slot and self._chance.random() < SAYS_MORE]
            return self._say("inform", (slot, *more))
        if action == "ask_open" and missing:
            return self._say("inform", self._some(missing, 1, len(missing)))
        if action == "greet" and heard.intent == "greet":
            return self._say("request", self._some(SLOTS, 0, 2))
        if action == "suggest_time":
            self.goal["time"] = self.something_like("time", self.goal["time"])
            return self._say("inform", ("time",))
        if action == "confirm" and not heard.confirmed:
            wrong = [name for name in SLOTS if heard.values[name] != self.goal[name]]
            return self._say("change", wrong) if wrong else self._say("agree")
        return self._complains()

    def _had_asked(self, action: str) -> Said:
        """Asks until it is answered."""
        if action != "tell_hours":
            self._annoyances += 1
            return self._last
        self._question = False
        return self._say("request", self._some(SLOTS, 0, 2))

    def _repeats(self, annoyed: bool) -> Said:
        self._annoyances += annoyed
        return self._last

    def _complains(self) -> Said:
        self._annoyances += 1
        return self._say("complain")

    def _changes_mind(self) -> Said:
        slot = self._chance.choice(SLOTS[:3])
        self.goal[slot] = self.something_like(slot, self.goal[slot])
        return self._say("change", (slot,))

    def _some(self, slots: Iterable[str], least: int, most: int) -> list[str]:
        return self._chance.sample(list(slots), self._chance.randint(least, most))

    def _say(self, intent: str, slots: Iterable[str] = ()) -> Said:
        self._last = Said(intent, {slot: self.goal[slot] for slot in slots})
        return self._last
