"""`turnwise ledger`: is every turn in the journal accounted for?"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from turnwise.v1 import training_pb2
from turnwise_cli.journal_file import facts, open_journal
from turnwise_cli.learner_calls import data_option
from turnwise_learner.journal import Row

SHOWN_PROBLEMS = 20

_LESSONS = ("reward", "correction")


@dataclass(frozen=True)
class _Decision:
    dialogue_id: str
    parent_id: str
    index: int


@dataclass
class Ledger:
    """What the journal says of every turn, folded from its facts in any order."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """What does not close, one line each."""
    _decisions: dict[str, _Decision] = field(default_factory=dict)
    _continued: dict[str, str] = field(default_factory=dict)
    _confirmed: dict[str, str] = field(default_factory=dict)
    _unrecorded: set[str] = field(default_factory=set)
    _delivered: dict[str, tuple[int, str]] = field(default_factory=dict)
    _feedback: dict[tuple[str, str, str], list[tuple[int, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, rows: Iterable[Row]) -> "Ledger":
        """Takes facts in; call `close()` after the last."""
        for row in rows:
            fact = row.fact
            kind = fact.WhichOneof("kind")
            self.counts["facts"] += 1
            self._unrecorded.update(fact.unrecorded)
            if kind == "started":
                self._continued[fact.dialogue_id] = fact.started.continues
            elif kind == "decided":
                self._decide(fact)
            elif kind == "delivered":
                self._deliver(fact)
            elif kind == "feedback":
                self._rate(fact)
            elif kind == "ended":
                self.counts["ended"] += 1
                self._confirm(fact.ended.decision_id, f"the end of dialogue {fact.dialogue_id}")
            else:
                self.problems.append(f"fact {row.seq} ({fact.key}) is of no kind that this version knows")
        return self

    def close(self) -> "Ledger":
        """Counts, and lists in `problems` what does not close."""
        self.counts["dialogues"] = len(self._continued)
        self.counts["decided"] = len(self._decisions)
        self.counts["unrecorded"] = len(self._unrecorded - set(self._decisions))
        for decision_id, by in self._confirmed.items():
            if decision_id not in self._decisions and decision_id not in self._unrecorded:
                self.problems.append(f"{by} names decision {decision_id}, which is not in the journal")
        for decision_id, decision in self._decisions.items():
            self._count_decision(decision_id, decision)
        for (dialogue_id, decision_id, _), given in self._feedback.items():
            self._count_feedback(dialogue_id, decision_id, given)
        counts = self.counts
        self._equal("decided", counts["decided"], "confirmed + unconfirmed", "confirmed", "unconfirmed")
        self._equal(
            "confirmed", counts["confirmed"], "shown + overridden + dropped", "shown", "overridden", "dropped"
        )
        parts = ("rewards", "corrections", "superseded", "retracted", "retractions", "comments")
        self._equal("feedback", counts["feedback"], "its parts", *parts)
        return self

    def _equal(self, name: str, whole: int, formula: str, *parts: str) -> None:
        total = sum(self.counts[part] for part in parts)
        if whole != total:
            self.problems.append(f"{name} is {whole}, but {formula} is {total}")

    def _confirm(self, decision_id: str, by: str) -> None:
        if decision_id:
            self._confirmed.setdefault(decision_id, by)

    def _decide(self, fact: training_pb2.Fact) -> None:
        decided = fact.decided
        decision = _Decision(fact.dialogue_id, decided.parent_id, decided.index)
        self._decisions[decided.decision_id] = decision
        self._confirm(decided.parent_id, f"decision {decided.decision_id} of dialogue {fact.dialogue_id}")

    def _deliver(self, fact: training_pb2.Fact) -> None:
        delivered = fact.delivered
        how = training_pb2.Delivered.How.Name(delivered.how).lower()
        self._confirm(delivered.decision_id, f"a delivery in dialogue {fact.dialogue_id}")
        newest = self._delivered.get(delivered.decision_id, (0, ""))
        self._delivered[delivered.decision_id] = max(newest, (delivered.revision, how))

    def _rate(self, fact: training_pb2.Fact) -> None:
        feedback = fact.feedback
        self.counts["feedback"] += 1
        self._confirm(feedback.decision_id, f"feedback in dialogue {fact.dialogue_id}")
        kind = feedback.WhichOneof("kind") or "comment_only"
        key = (fact.dialogue_id, feedback.decision_id, feedback.teacher)
        self._feedback[key].append((feedback.revision, kind))

    def _count_decision(self, decision_id: str, decision: _Decision) -> None:
        where = f"decision {decision_id} (dialogue {decision.dialogue_id}, turn {decision.index})"
        if decision.dialogue_id not in self._continued:
            self.problems.append(f"{where} belongs to a dialogue whose start is not in the journal")
        parent = self._decisions.get(decision.parent_id)
        if not decision.parent_id:
            if decision.index and not self._continued.get(decision.dialogue_id):
                self.problems.append(f"{where} has no parent; wanted only of turn 0")
        elif (
            parent is not None
            and parent.dialogue_id == decision.dialogue_id
            and parent.index + 1 != decision.index
        ):
            self.problems.append(f"{where} follows turn {parent.index}: a gap in the turns")
        if decision_id not in self._confirmed:
            self.counts["unconfirmed"] += 1
            return
        self.counts["confirmed"] += 1
        _, how = self._delivered.get(decision_id, (0, "shown"))
        self.counts[how if how in ("overridden", "dropped") else "shown"] += 1

    def _count_feedback(self, dialogue_id: str, decision_id: str, given: list[tuple[int, str]]) -> None:
        withdrawn = max((revision for revision, kind in given if kind == "retraction"), default=-1)
        newest = {
            lesson: max((revision for revision, kind in given if kind == lesson), default=-1)
            for lesson in _LESSONS
        }
        live = 0
        for revision, kind in given:
            if kind not in _LESSONS:
                self.counts["retractions" if kind == "retraction" else "comments"] += 1
            elif revision < newest[kind]:
                self.counts["superseded"] += 1
            elif revision < withdrawn:
                self.counts["retracted"] += 1
            else:
                self.counts[f"{kind}s"] += 1
                live += 1
        if live and decision_id:
            self.counts["rated"] += 1
        elif live:
            self.counts["rated dialogues"] += 1


@click.command(short_help="Check that every turn in the journal is accounted for.")
@data_option
def command(data: Path) -> int:
    r"""Check that every turn in the journal is accounted for.

    \b
    decided   = confirmed + unconfirmed
    confirmed = shown + overridden + dropped
    feedback  = live rewards and corrections + superseded + retracted + retractions + comments

    and every fact names only decisions that are there, without gaps in the turns. Exit code 1 names what
    does not close. Needs no learner; while one runs, facts that an actor still holds in its spool can
    show as missing.
    """
    with open_journal(data) as journal:
        ledger = Ledger().add(facts(journal)).close()
    Console().print(_table(ledger.counts))
    for problem in ledger.problems[:SHOWN_PROBLEMS]:
        click.echo(f"does not close: {problem}", err=True)
    if len(ledger.problems) > SHOWN_PROBLEMS:
        click.echo(f"... and {len(ledger.problems) - SHOWN_PROBLEMS} more", err=True)
    if not ledger.problems:
        click.echo("closed: every turn is accounted for")
    return 1 if ledger.problems else 0


def _table(counts: Counter[str]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for name in ("facts", "dialogues", "ended", "decided", "  confirmed", "    shown", "    overridden",
                 "    dropped", "  unconfirmed", "feedback", "  rewards", "  corrections", "  superseded",
                 "  retracted", "  retractions", "  comments", "rated", "rated dialogues"):  # fmt: skip
        table.add_row(name, f"{counts[name.strip()]:,}")
    return table
