"""Executes the tables of docs/semantics.md."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.learner.trainer.facts import Journal, make_domain
from turnwise.v1 import dialogue_pb2
from turnwise_learner.trainer.assembler import Assembler
from turnwise_learner.trainer.turns import TurnRecord

DOCUMENT = Path(__file__).parents[3] / "docs/semantics.md"
TERMINATE = {"success", "failure", "goodbye"}


def table_rows() -> list[tuple[str, float, str, str]]:
    found = re.findall(r"^\| ([^|]+) \| (0|0\.9) \| `([^|]+)` \| ([^|]+) \|$", DOCUMENT.read_text(), re.M)
    return [(rule, float(gamma), facts, learned) for rule, gamma, facts, learned in found]


def say(journal: Journal, fact: str) -> None:
    """One fact in the language of the tables."""
    verb, *words = fact.split()
    options: dict[str, Any] = {}
    for name, key in (("by", "teacher"), ("rev", "revision"), ("after", "parent")):
        if name in words:
            at = words.index(name)
            options[key] = int(words[at + 1]) if name == "rev" else words[at + 1]
            del words[at : at + 2]
    if verb == "decide":
        flags = {"mode": dialogue_pb2.EVALUATE} if "evaluate" in words else {}
        journal.decided(words[0], action=words[1], recorded="unrecorded" not in words, **options, **flags)
    elif verb == "reward":
        journal.feedback(words[0], reward=float(words[1]), **options)
    elif verb == "correct":
        journal.feedback(words[0], correction=words[1], **options)
    elif verb == "retract":
        journal.feedback(words[0], retraction=True, **options)
    elif verb == "rate-dialogue":
        journal.feedback("", reward=float(words[0]), **options)
    elif verb == "override":
        journal.delivered(words[0], "OVERRIDDEN", words[1])
    elif verb == "drop":
        journal.delivered(words[0], "DROPPED")
    elif verb == "end":
        last = re.search(r'then "(.*)"', fact)
        journal.ended(words[0], words[1] in TERMINATE, last.group(1) if last else None)
    else:
        raise ValueError(f"the tables have no word {verb!r}")


def told(turn: TurnRecord, actions: tuple[str, ...]) -> str:
    """A turn in the language of the tables."""
    if turn.action < 0:
        return f"{turn.decision_id}: state"
    words = [f"{turn.decision_id}: {actions[turn.action]}"]
    words.append(
        "?" if turn.reward is None else f"{turn.reward:+g}".replace("+0", "0").replace("0.5", "+0.5")
    )
    words += [f"→ {turn.successor}"] * bool(turn.successor)
    words += ["■"] * turn.terminated + ["†"] * turn.breaks_return
    return " ".join(words)


def test_the_tables_are_found() -> None:
    assert len(table_rows()) >= 24


@pytest.mark.parametrize(("rule", "gamma", "facts", "learned"), table_rows())
def test_the_trainer_does_what_the_document_says(rule: str, gamma: float, facts: str, learned: str) -> None:
    journal = Journal(make_domain(gamma=gamma))
    for fact in facts.split(";"):
        say(journal, fact.strip())
    assembler = Assembler(journal.domain, journal.dialogues, journal.domain_json)
    turns: dict[str, TurnRecord] = {}
    for change in assembler.assemble(journal.rows):
        turns |= {record.decision_id: record for record in change.records}
    wanted = sorted(re.findall(r"`([^`]+)`", learned))
    assert sorted(told(turn, journal.domain.action_ids) for turn in turns.values()) == wanted, rule
