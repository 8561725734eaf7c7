"""Afterwards: the frontends' log against the journal, the trainer's counters and `turnwise ledger`."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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


def account(log: ClientLog, rows: Iterable[Row]) -> Account:
    """Holds the log against all of the journal."""
    decided: Counter[str] = Counter()
    rated: dict[str, list[float]] = {}
    children: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        kind = row.fact.WhichOneof("kind")
        if kind == "decided":
            fact = row.fact.decided
            decided[fact.decision_id] += 1
            if fact.decision_id in log.turns:
                children.setdefault((row.dialogue_id, fact.parent_id), set()).add(fact.decision_id)
        elif kind == "feedback" and row.fact.feedback.HasField("reward"):
            rated.setdefault(row.fact.feedback.decision_id, []).append(row.fact.feedback.reward)
    doubled = [decision for decision, count in decided.items() if count > 1]
    doubled += [decision for decision in log.ratings if len(rated.get(decision, [])) > 1]
    doubled += [f"{parent} in {dialogue}" for (dialogue, parent), of in children.items() if len(of) > 1]
    wrong = [
        decision for decision, reward in log.ratings.items() if rated.get(decision, [reward])[0] != reward
    ]
    lost = [decision for decision in log.ratings if decision not in rated]
    return Account(lost + wrong, [turn for turn in log.turns if not decided[turn]], doubled)


def journal_rows(data: Path) -> Iterator[Row]:
    """Every fact."""
    with open_journal(data) as journal:
        yield from facts(journal)


def ledger(data: Path) -> tuple[int, str]:
    """Exit code and last words of `turnwise ledger`."""
    command = [sys.executable, "-m", "turnwise_cli", "ledger", "--data", str(data)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return ran.returncode, (ran.stderr or ran.stdout).strip()[-500:]


async def learned(learner: str, log: ClientLog) -> str:
    """Waits until the trainer has met every rating; what is wrong otherwise."""
    deadline = time.monotonic() + PATIENCE_S
    count = -1
    while time.monotonic() < deadline:
        with contextlib.suppress(grpc.RpcError):
            state = await asyncio.to_thread(status, learner, ANSWER_S)
            count = state.trainer.rated_turns
            held = sum(
                actor.report.pending_facts + actor.report.spooled_bytes
                for actor in state.actors
                if actor.connected
            )
            if count == len(log.ratings) and not held:
                return ""
        await asyncio.sleep(0.2)
    return f"the trainer has met {count} rated turns, the frontends were acknowledged {len(log.ratings)}"
