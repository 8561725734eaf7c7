"""Afterwards: the frontends' log against the journal, the trainer's counters and `turnwise ledger`."""

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc

from frontends import ClientLog
from live import status
from turnwise_cli.journal_file import facts, open_journal
from turnwise_learner.journal import Row

PATIENCE_S = 120.0
ANSWER_S = 5.0


@dataclass
class Account:
    """The frontends' log against the journal."""

    lost_feedback: list[str]
    lost_turns: list[str]
    doubled: list[str]
    unrecorded: list[str]
    """Turns that the journal names as answered with `recorded=false`: neither memory nor disk took them."""
    learnable: int = 0
    """Ratings of turns that the journal has; the trainer cannot learn those of others."""

    def unlearned(self, met: int) -> str:
        """What is wrong if the trainer, having read all, has met so many ratings; empty: nothing."""
        if met == self.learnable:
            return ""
        return f"the trainer has met {met} of {self.learnable} acknowledged ratings of journaled turns"


def account(log: ClientLog, rows: Iterable[Row]) -> Account:
    """Holds the log against all of the journal."""
    decided: Counter[str] = Counter()
    rated: dict[str, list[float]] = {}
    children: dict[tuple[str, str], set[str]] = {}
    unrecorded: set[str] = set()
    for row in rows:
        unrecorded.update(row.fact.unrecorded)
        kind = row.fact.WhichOneof("kind")
        if kind == "decided":
            fact = row.fact.decided
            decided[fact.decision_id] += 1
            if fact.decision_id in log.turns:
                children.setdefault((row.dialogue_id, fact.parent_id), set()).add(fact.decision_id)
        elif kind == "feedback" and row.fact.feedback.HasField("reward"):
            rated.setdefault(row.fact.feedback.decision_id, []).append(row.fact.feedback.reward)
    doubled = [decision for decision, count in decided.items() if count > 1]
    doubled += [each for each in log.ratings if len(rated.get(each, [])) > log.attempts[each]]
    doubled += [f"{parent} in {dialogue}" for (dialogue, parent), of in children.items() if len(of) > 1]
    wrong = [
        decision for decision, reward in log.ratings.items() if rated.get(decision, [reward])[0] != reward
    ]
    lost = [decision for decision in log.ratings if decision not in rated]
    missing = [turn for turn in log.turns if not decided[turn]]
    named = [turn for turn in missing if turn in unrecorded]
    lost_turns = [turn for turn in missing if turn not in unrecorded]
    learnable = sum(1 for decision in log.ratings if decided[decision])
    return Account(lost + wrong, lost_turns, doubled, named, learnable)


def journal_rows(data: Path) -> Iterator[Row]:
    """Every fact."""
    with open_journal(data) as journal:
        yield from facts(journal)


def ledger(data: Path) -> tuple[int, str]:
    """Exit code and last words of `turnwise ledger`."""
    command = [sys.executable, "-m", "turnwise_cli", "ledger", "--data", str(data)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.returncode, (ran.stderr or ran.stdout).strip()[-500:]


async def ratings_met(learner: str) -> int:
    """Waits until the trainer has read all that was said, as long as it gets on; the ratings it has met then.

    Raises:
        StandsStillError: It does not get on.
    """
    missing, before = "?", ""
    while missing != before:
        before = missing
        if not (missing := await until_nothing_is_missing(partial(_unread, learner))):
            return int((await asyncio.to_thread(status, learner, ANSWER_S)).trainer.rated_turns)
    raise StandsStillError(missing)


class StandsStillError(RuntimeError):
    """The trainer does not read on; the message says what is missing."""


def _unread(learner: str) -> str:
    """What the trainer has not read; nothing once it is at the journal's end and no actor holds any back."""
    try:
        state = status(learner, ANSWER_S)
    except grpc.RpcError as error:
        return f"the learner does not answer ({error.code()})"
    reports = [actor.report for actor in state.actors if actor.connected]
    if held := [report.address for report in reports if report.pending_facts + report.spooled_bytes]:
        return f"facts are held back by {', '.join(held)}"
    behind = state.journal_cursor - state.trainer.journal_cursor
    return f"the trainer has {behind} facts to read" if behind else ""


async def until_nothing_is_missing(look: Callable[[], str]) -> str:
    """Asks what is missing until nothing is; what is missing still after `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    while (missing := await asyncio.to_thread(look)) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return missing
