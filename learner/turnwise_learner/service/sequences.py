"""Numbers of actors' facts: through which they are in the journal, and which have no row and never will.

Every other number up to there must be found in the journal; `turnwise ledger` looks.
"""

import json
import re
import sqlite3
from collections.abc import Sequence

from turnwise.v1 import training_pb2
from turnwise_learner.journal import number_of
from turnwise_learner.service.facts import MAX_SEQUENCE

_INCARNATION = re.compile("[0-9a-f]{16}")
_NOTE_ACTOR = (
    "INSERT INTO actors VALUES (?, ?, ?) ON CONFLICT (incarnation) DO UPDATE SET address = excluded.address, "
    "journaled_through = max(journaled_through, excluded.journaled_through)"
)


def note_actor(connection: sqlite3.Connection, report: training_pb2.ActorReport, address: str) -> None:
    """Keeps what an actor says is in the journal."""
    if _INCARNATION.fullmatch(report.incarnation) and report.journaled_through <= MAX_SEQUENCE:
        connection.execute(_NOTE_ACTOR, (report.incarnation, address, report.journaled_through))


def note_not_kept(connection: sqlite3.Connection, facts: Sequence[training_pb2.Fact]) -> None:
    """Keeps the numbers that no row has: facts that were refused, or whose key was there already."""
    query = "SELECT key, body FROM facts WHERE key IN (SELECT value FROM json_each(?))"
    rows = connection.execute(query, (json.dumps([fact.key for fact in facts]),)).fetchall()
    kept = {key: number_of(training_pb2.Fact.FromString(body)) for key, body in rows}
    given = [(fact.key, number_of(fact)) for fact in facts if 0 < fact.sequence <= MAX_SEQUENCE]
    not_kept = [number for key, number in given if number != kept.get(key)]
    connection.executemany("INSERT OR IGNORE INTO not_kept VALUES (?, ?)", not_kept)
