"""The journal of a data folder, for the verbs that read it without a learner."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import click

from turnwise_learner.journal import JournalError, JournalReader, Row, journal_path

PAGE_FACTS = 2048


@contextlib.contextmanager
def open_journal(data: Path) -> Iterator[JournalReader]:
    """The journal, read-only; works while a learner writes it and while none runs.

    Raises:
        click.ClickException: There is none, or it cannot be read.
    """
    try:
        with JournalReader(journal_path(data)) as journal:
            yield journal
    except (JournalError, sqlite3.Error) as error:
        raise click.ClickException(f"{error}; name the data folder with --data") from error


def facts(journal: JournalReader, after: int = 0) -> Iterator[Row]:
    """All facts after a cursor that are in the journal now, in journal order."""
    last = journal.last_cursor()
    while after < last:
        rows = journal.read_after(after, PAGE_FACTS)
        if not rows:
            return
        for row in rows:
            if row.seq > last:
                return
            yield row
        after = rows[-1].seq
