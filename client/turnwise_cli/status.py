"""`turnwise status`: what learner and actors are doing."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import click
import grpc
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_cli.explore import exploration_texts
from turnwise_cli.learner_calls import (
    CALL_TIMEOUT_S,
    Learner,
    explain,
    learner_options,
    operator,
    version_text,
)
from turnwise_cli.wire_json import plain

_RECONNECT_S = 1.0
_SHOWN_COUNTERS = ("turns", "lessons", "ended")


@click.command(short_help="Show what learner and actors are doing.")
@learner_options
@click.option("--watch", is_flag=True, help="Go on showing it, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="JSON; with --watch one line a second.")
def command(learner: Learner, watch: bool, as_json: bool) -> int:
    """Show what learner and actors are doing.

    Exit code 1 when the learner cannot be reached, with --watch when it never could.
    """
    if watch:
        _watch(learner, as_json)
        return 0
    with operator(learner) as stub:
        status = stub.GetStatus(training_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)
    if as_json:
        click.echo(json.dumps(plain(status), indent=2))
    else:
        Console().print(render(status, learner.name, now_ms()))
    return 0


def _watch(learner: Learner, as_json: bool) -> None:
    with operator(learner) as stub:  # the first answer must come; later ones are waited for
        status = stub.GetStatus(training_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)
    if as_json:
        for item in _statuses(learner):
            if isinstance(item, training_pb2.LearnerStatus):
                click.echo(json.dumps(plain(item)))
        return
    console = Console()
    address = learner.name
    with Live(render(status, address, now_ms()), console=console, auto_refresh=False) as live:
        for item in _statuses(learner):
            if isinstance(item, str):
                away = Text(f"{item}; trying again, what follows is the last that is known", style="bold red")
                live.update(Group(away, render(status, address, now_ms())), refresh=True)
            else:
                status = item
                live.update(render(status, address, now_ms()), refresh=True)


def _statuses(learner: Learner) -> Iterator[training_pb2.LearnerStatus | str]:
    """Each status as it comes; a line of text whenever the learner is away. Never ends."""
    while True:
        with learner.channel() as channel:
            try:
                yield from training_pb2_grpc.OperatorStub(channel).WatchStatus(
                    training_pb2.GetStatusRequest(interval_ms=1000)
                )
            except grpc.RpcError as error:
                yield explain(error, learner.name)
        time.sleep(_RECONNECT_S)


def render(status: training_pb2.LearnerStatus, address: str, now: int) -> RenderableType:
    """A status as tables.

    Args:
        status: As the learner sent it.
        address: Of the learner.
        now: Milliseconds since the epoch.
    """
    parts: list[RenderableType] = [_facts(status, address, now), _actors(status, now)]
    parts += [Text(f"! {problem}", style="bold yellow") for problem in problems(status)]
    return Group(*parts)


def problems(status: training_pb2.LearnerStatus) -> list[str]:
    """What the operator should know, one line each."""
    found = []
    if not status.trainer_alive:
        again = f"; started again {status.trainer_restarts} times" if status.trainer_restarts else ""
        found.append(
            "the trainer is away: facts are journaled and answers go on, nothing is learned meanwhile"
            f"{again} (logs/trainer.log of the data folder tells why)"
        )
    if status.trainer.paused:
        found.append("learning is paused: `Resume` of the operator service goes on with it")
    if not status.actors:
        found.append("no actor has reported yet")
    for actor in status.actors:
        if not actor.connected:
            found.append(f"actor {actor.report.address} is away")
        elif actor.report.unrecorded_turns:
            found.append(
                f"actor {actor.report.address} answered {actor.report.unrecorded_turns} turns that are not "
                "recorded: its spool was full"
            )
    return found + list(status.store.problems) + list(status.trainer.warnings)


def _facts(status: training_pb2.LearnerStatus, address: str, now: int) -> Table:
    trainer = status.trainer
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()

    def row(name: str, text: str) -> None:
        table.add_row(name, escape(text))

    row("learner", f"{address}, pid {status.pid}, up {age(now - status.started_ms)}, epoch {status.epoch}")
    row("domain", f"{status.domain} ({status.domain_fingerprint})")
    row("policy", f"{version_text(status.published)}, learned through {status.published_learned_through:,}")
    lag = max(0, status.journal_cursor - trainer.journal_cursor)
    behind = f"{lag:,} facts behind" if lag else "up to date"
    state = behind if status.trainer_alive else f"away, {behind}"
    restarts = f", {status.trainer_restarts} restarts" if status.trainer_restarts else ""
    row("trainer", f"{state}{restarts}, loss {trainer.loss:.4f}, {trainer.updates_per_s:.0f} updates/s")
    row("turns", f"{trainer.turns:,}, of which rated {trainer.rated_turns:,}; lessons {trainer.lessons:,}")
    row("updates", f"{trainer.updates:,}, owed {trainer.updates_owed:,}, forgone {trainer.updates_forgone:,}")
    dialogues = f"{status.dialogues:,} dialogues, {status.ended:,} ended, {trainer.open_dialogues:,} open"
    row(
        "replay",
        f"{trainer.replay_rows:,} of {trainer.replay_capacity:,} rows, {trainer.evicted_rows:,} evicted",
    )
    row("journal", f"cursor {status.journal_cursor:,}, {_bytes(status.journal_bytes)}; {dialogues}")
    row("", f"{status.decisions:,} decisions, {status.feedback:,} feedback")
    row("checkpoint", _checkpoint(trainer.last_checkpoint, now))
    row("store", _store(status))
    if trainer.HasField("exploration"):
        modes = exploration_texts(trainer.exploration).items()
        row("exploration", "; ".join(f"{mode} {told}" for mode, told in modes))
    counters = {name: count for name, count in trainer.counters.items() if name not in _SHOWN_COUNTERS}
    if counters:
        told = (f"{name.replace('_', ' ')} {count:,}" for name, count in sorted(counters.items()))
        row("also", ", ".join(told))
    return table


def _actors(status: training_pb2.LearnerStatus, now: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="actors", title_justify="left")
    for name in (
        "address",
        "state",
        "policy",
        "behind",
        "turns",
        "pending",
        "spool",
        "streams",
        "seen",
    ):
        right = name in ("behind", "turns", "pending", "streams")
        table.add_column(name, justify="right" if right else "left", no_wrap=name == "address")
    for actor in sorted(status.actors, key=lambda actor: actor.report.address):
        report = actor.report
        state = "draining" if report.draining else "up" if actor.connected else "away"
        table.add_row(
            escape(report.address),
            Text(state, style={"up": "green", "away": "red"}.get(state, "yellow")),
            version_text(report.policy_version),
            f"{max(0, status.published_learned_through - report.learned_through):,}",
            f"{report.turns:,}",
            f"{report.pending_facts:,}",
            _bytes(report.spooled_bytes),
            f"{report.streams:,}",
            age(now - actor.last_seen_ms),
        )
    return table


def _checkpoint(checkpoint: training_pb2.CheckpointInfo, now: int) -> str:
    if not checkpoint.path:
        return "none yet"
    pinned = ", pinned" if checkpoint.pinned else ""
    saved = age(now - checkpoint.saved_ms)
    return f"{Path(checkpoint.path).name}, {saved} ago, through {checkpoint.journal_cursor:,}{pinned}"


def _store(status: training_pb2.LearnerStatus) -> str:
    survives = "acknowledged facts survive a process crash, not the loss of the learner's disk"
    if not status.HasField("store"):
        return f"none: {survives}"
    store = status.store
    shipped = f"shipped through {store.shipped_through:,} of {status.journal_cursor:,}"
    return f"{store.uri}, {store.checkpoint or 'no checkpoint yet'}; {survives}: {shipped}"


def age(milliseconds: int) -> str:
    """A length of time for people: `8 s`, `5 min`, `3.2 h`, `12 d`."""
    seconds = max(0, milliseconds) / 1000
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 72 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} d"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
