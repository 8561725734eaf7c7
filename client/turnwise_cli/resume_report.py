"""`turnwise resume-report`: what a restart would continue from."""

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from turnwise_cli.journal_file import open_journal
from turnwise_cli.learner_calls import data_option
from turnwise_cli.resume_point import ResumePoint, resume_point


@click.command(short_help="Tell what a restart would continue from.")
@data_option
def command(data: Path) -> int:
    """Tell what a restart would continue from: the checkpoint, and the facts replayed after it.

    Reads the data folder alone; works while a learner runs and while none does. Exit code 1 when the
    learner would refuse to start from what is there.
    """
    with open_journal(data) as journal:
        point = resume_point(data, journal)
    Console().print(_table(point))
    if point.problem:
        click.echo(f"would not start: {point.problem}", err=True)
        return 1
    return 0


def _table(point: ResumePoint) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = {
        "checkpoint": point.checkpoint or "none: everything is learned again from the journal",
        "its cursor": "unknown" if point.cursor is None else f"{point.cursor:,}",
        "its updates": "unknown" if point.updates is None else f"{point.updates:,}",
        "its version": point.version or "unknown",
        "journal cursor": f"{point.journal_cursor:,}",
        "facts to replay": "unknown" if point.cursor is None else f"{point.facts_to_replay:,}",
        "next generation": f"{point.last_generation + 1}",
    }
    for name, text in rows.items():
        table.add_row(name, escape(text))
    for generation in point.generations[-5:]:
        table.add_row("", escape(generation))
    return table
