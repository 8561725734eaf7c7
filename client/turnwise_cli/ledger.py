"""`turnwise ledger`: is every turn and every rating accounted for?"""

import itertools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import grpc
from rich.console import Console
from rich.table import Table

from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.policy import Domain, DomainError
from turnwise_cli.books import Books, Learned
from turnwise_cli.journal_file import facts, open_journal
from turnwise_cli.learner_calls import CALL_TIMEOUT_S, data_option
from turnwise_cli.resume_point import newest_checkpoint
from turnwise_cli.sequences import Sequences
from turnwise_learner.journal import KINDS, JournalReader

SHOWN_PROBLEMS = 20

_ROWS = ("facts", "  numbered", "  awaited", "dialogues", "ended", "decided", "  confirmed", "    shown",
         "    overridden", "    dropped", "  unconfirmed", "unrecorded", "feedback", "  rated", "    applied",
         "    superseded", "    retracted", "    waiting", "    not learnable", "  retractions", "  comments",
         "rated turns", "rated dialogues")  # fmt: skip


@dataclass(frozen=True)
class Trainer:
    """What a trainer says it has taken in."""

    source: str
    cursor: int
    fingerprint: str
    """Of the domain in force."""
    rows: int
    evicted: int
    turns: int
    rated_turns: int
    held: int
    """Facts read whose window (`rewards.wait`) is still open."""


@click.command(short_help="Check that every turn and every rating is accounted for.")
@data_option
@click.option("--json", "as_json", is_flag=True, help="JSON: counts, reasons, trainer, problems, closed.")
def command(data: Path, as_json: bool) -> int:
    """Check that every turn and every rating is accounted for.

    \b
    decided   = confirmed + unconfirmed
    confirmed = shown + overridden + dropped
    feedback  = rated + retractions + comments
    rated     = applied + superseded + retracted + waiting + not learnable
    journal   = replay + evicted + not learnable, and the trainer has counted the same turns and ratings

    and every fact names only decisions that are there, without gaps in the turns. Actors number their facts:
    those that an actor was told are in the journal must all be there; `awaited` are earlier ones than others
    of the same actor that are under way, or went with it. `waiting`: the window of rewards.wait is open, or
    what is rated has not arrived. The trainer is the running one; else the newest checkpoint; else it is left
    out. Exit code 1 names what does not close. While actors are away, facts that they still hold in their
    spools show as missing.
    """  # noqa: D301 click wants the character itself
    with open_journal(data) as journal:
        trainer = _trainer(data, journal)
        books = _fold(journal, trainer)
    if as_json:
        click.echo(json.dumps(_plain(books, trainer), indent=2))
        return 1 if books.problems else 0
    Console().print(_table(books))
    for problem in books.problems[:SHOWN_PROBLEMS]:
        click.echo(f"does not close: {problem}", err=True)
    if len(books.problems) > SHOWN_PROBLEMS:
        click.echo(f"... and {len(books.problems) - SHOWN_PROBLEMS} more", err=True)
    click.echo(
        f"compared with {trainer.source}" if trainer else "no trainer and no checkpoint to compare with"
    )
    if not books.problems:
        click.echo("closed: every turn is accounted for")
    return 1 if books.problems else 0


def _fold(journal: JournalReader, trainer: Trainer | None) -> Books:
    """The journal's books, with the trainer's checked at the position that it has read to."""
    books, sequences = Books(_domain(journal, trainer), journal.domain), Sequences(journal)
    cursor = trainer.cursor if trainer else 0
    books.add(sequences.of(itertools.takewhile(lambda row: row.seq <= cursor, facts(journal))))
    if trainer is not None:
        books.problems += compare(books.learned(), trainer)
    books.add(sequences.of(facts(journal, after=cursor))).close(time.time_ns() // 1_000_000)
    names = {number: name for name, number in KINDS.items()}
    for kind, written in journal.written.items():
        if books.kinds[kind] < written:
            name = names.get(kind, kind)
            books.problems.append(
                f"{written} facts of kind {name} were committed, {books.kinds[kind]} are there"
            )
    books.counts["numbered"], books.counts["awaited"] = sequences.numbered, sequences.awaited()
    books.problems += sequences.missing()
    return books


def compare(expected: Learned, trainer: Trainer) -> list[str]:
    """What a trainer holds and has counted, against the facts that it has read."""
    if trainer.held:
        return []  # They are in its cursor, and not yet in its counts.
    problems = []
    if trainer.rows + trainer.evicted != expected.rows:
        problems.append(
            f"the journal has {expected.rows} learnable turns and last states up to fact {trainer.cursor}, "
            f"but replay + evicted is {trainer.rows} + {trainer.evicted} ({trainer.source})"
        )
    for name, wanted, got in (
        ("confirmed", expected.turns, trainer.turns),
        ("rated", expected.rated_turns, trainer.rated_turns),
    ):
        if wanted != got:
            problems.append(
                f"the journal has {wanted} {name} turns to learn from up to fact {trainer.cursor}, but "
                f"{trainer.source} has counted {got}"
            )
    return problems


def _domain(journal: JournalReader, trainer: Trainer | None) -> Domain | None:
    """The domain in force; None: the journal names none that this version can read."""
    text = journal.domain(trainer.fingerprint) if trainer else None
    text = text or journal.newest_domain()
    try:
        return Domain.from_json(text) if text else None
    except (DomainError, KeyError, ValueError):
        return None


def _trainer(data: Path, journal: JournalReader) -> Trainer | None:
    return _running(data, journal.journal_id) or _saved(data, journal.journal_id)


def _running(data: Path, journal_id: str) -> Trainer | None:
    """The trainer of the learner that serves this data folder, if it is there."""
    address = data / "learner.address"
    if not address.exists():
        return None
    with grpc.insecure_channel(address.read_text().strip()) as channel:
        try:
            status = training_pb2_grpc.OperatorStub(channel).GetStatus(
                training_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S
            )
        except grpc.RpcError:
            return None
    if status.journal_id != journal_id or not status.trainer_alive:
        return None
    report = status.trainer
    return Trainer(
        "the running trainer",
        report.journal_cursor,
        status.domain_fingerprint,
        report.replay_rows,
        report.evicted_rows,
        report.turns,
        report.rated_turns,
        report.counters.get("held", 0),
    )


def _saved(data: Path, journal_id: str) -> Trainer | None:
    """What the newest checkpoint says; those of before it said it are left out."""
    name, manifest, _ = newest_checkpoint(data / "checkpoints")
    counted = manifest.get("counted")
    if not counted or manifest.get("journal_id") != journal_id:
        return None
    return Trainer(
        f"checkpoint {name}",
        int(manifest["journal_cursor"]),
        str(manifest["domain_fingerprint"]),
        **{key: int(counted.get(key, 0)) for key in ("rows", "evicted", "turns", "rated_turns", "held")},
    )


def _plain(books: Books, trainer: Trainer | None) -> dict[str, object]:
    return {
        "closed": not books.problems,
        "counts": {name.strip(): books.counts[name.strip()] for name in _ROWS},
        "not_learnable": dict(books.reasons),
        "trainer": asdict(trainer) if trainer else None,
        "problems": books.problems,
    }


def _table(books: Books) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for name in _ROWS:
        table.add_row(name, f"{books.counts[name.strip()]:,}")
        if name.strip() == "not learnable":
            for reason, count in sorted(books.reasons.items()):
                table.add_row(f"      {reason}", f"{count:,}")
    return table
