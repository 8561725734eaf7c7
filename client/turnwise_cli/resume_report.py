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

    Reads the data folder alone; works while a learner runs and while none does. Exit code 1 when
    something there is wrong.
    """
    with open_journal(data) as journal:
        point = resume_point(data, journal)
    Console().print(_table(point))
    for problem in point.problems:
        click.echo(f"wrong: {problem}", err=True)
    return 1 if point.problems else 0


def _table(point: ResumePoint) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = {
        "checkpoint": point.checkpoint or "none: everything is learned again from the journal",
        "holds version": point.version or "none",
        "its updates": f"{point.updates:,}",
        "its cursor": f"{point.cursor:,}",
        "journal cursor": f"{point.journal_cursor:,}",
        "facts to replay": f"{point.facts_to_replay:,}",
        "next generation": f"{point.last_generation + 1}",
    }
    for name, text in rows.items():
        table.add_row(name, escape(text))
    for generation in point.generations[-5:]:
        table.add_row("", escape(generation))
    return table
