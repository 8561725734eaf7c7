"""What the bot's side knows of a call: what was heard, how clearly, and which actions make sense now."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from person import SLOTS, Person, Said

UNCLEAR = 0.1
"""Share of the utterances of which nothing is understood."""
UNSURE = 0.2
UNSURE_IN_A_RUSH = 0.4
"""The same where three or four things are said at once."""
WRONG_WHERE_UNSURE = 0.5
WRONG_WHERE_SURE = 0.04
FULL = 0.25


@dataclass
class Heard:
    """What was understood so far."""

    intent: str = "greet"
    values: dict[str, str] = field(default_factory=dict)
    sure: set[str] = field(default_factory=set)
    confirmed: bool = False

    @property
    def complete(self) -> bool:
        """Whether every slot has a value, right or wrong."""
        return len(self.values) == len(SLOTS)


class Call:
    """A person on the line, from the first words to a booking or a hang-up.

    Attributes:
        outcome: "success", "failure", or "" while the call goes on.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._person = Person(chance)
        self._heard = Heard()
        self._full: set[tuple[str, ...]] = set()
        self._asked_for: set[tuple[str, ...]] = set()
        self.outcome = ""
        self._listen(self._person.opens())

    def seen(self) -> dict[str, str | bool]:
        """The slots that the bot sees."""
        heard = self._heard
        slots: dict[str, str | bool] = {
            slot: "sure" if slot in heard.sure else "unsure" for slot in SLOTS if slot in heard.values
        }
        slots |= {"intent": heard.intent, "confirmed": heard.confirmed, "annoyed": self._person.annoyed}
        if table := self._table():
            slots["table"] = table
        return slots

    def allowed(self) -> list[str]:
        """Actions that can be carried out now; which of them is wise is for the bot to learn."""
        actions = ["greet", "ask_open", *(f"ask_{slot}" for slot in SLOTS), "ask_again", "tell_hours"]
        if self._table() == "full":
            actions.append("suggest_time")
        if self._heard.complete and self._table() == "free":
            actions += ["confirm", "book"]
        return actions

    def act(self, action: str) -> None:
        """Carries an action out and hears the person's answer to it."""
        if action == "book":
            self.outcome = "success" if self._heard.values == self._person.goal else "failure"
            return
        said = self._person.answers(action, self._heard)
        if self._person.left:
            self.outcome = "failure"
            return
        self._listen(said)

    def _listen(self, said: Said) -> None:
        heard = self._heard
        if self._chance.random() < UNCLEAR:
            heard.intent = "unclear"
            return
        heard.intent = said.intent
        if said.intent == "agree":
            heard.sure, heard.confirmed = set(SLOTS), True
        unsure = UNSURE_IN_A_RUSH if len(said.values) > 2 else UNSURE
        for slot, value in said.values.items():
            sure = self._chance.random() >= unsure
            wrong = self._chance.random() < (WRONG_WHERE_SURE if sure else WRONG_WHERE_UNSURE)
            heard.values[slot] = self._person.something_like(slot, value) if wrong else value
            heard.sure = heard.sure | {slot} if sure else heard.sure - {slot}
            heard.confirmed = False

    def _table(self) -> str:
        """Whether there is a table, as the book says once it can be looked up."""
        values: Mapping[str, str] = self._heard.values
        if not {"people", "day", "time"} <= set(values):
            return ""
        wanted = (values["people"], values["day"], values["time"])
        if wanted not in self._asked_for:
            self._asked_for.add(wanted)
            # Once one hour was full, the next one suggested is free.
            if not self._full and self._chance.random() < FULL:
                self._full.add(wanted)
        return "full" if wanted in self._full else "free"
