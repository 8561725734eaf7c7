"""`turnwise export`: the journal's facts as lines."""

import csv
import datetime
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from turnwise.v1 import dialogue_pb2
from turnwise_cli.journal_file import facts, open_journal
from turnwise_cli.learner_calls import data_option, version_text
from turnwise_cli.wire_json import Json, plain
from turnwise_learner.journal import JournalReader, Row

COLUMNS: tuple[str, ...] = (
    "seq", "time", "dialogue_id", "fact", "user", "mode", "decision_id", "parent_id", "index", "text",
    "slots", "features", "allowed", "action", "probabilities", "policy_version", "how", "teacher", "revision",
    "reward", "correction", "retraction", "comment", "outcome", "terminated", "key", "actor",
)  # fmt: skip
"""Of the CSV, in order. Lists and mappings are JSON."""


@click.command(short_help="Write the journal's facts to the standard output.")
@data_option
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only facts after this journal cursor.")
def command(data: Path, form: str, after: int) -> None:
    """Write the journal's facts to the standard output, one a line, in journal order.

    Needs no learner, and may run beside one.
    """
    with open_journal(data) as journal:
        lines = FactLines(journal).of(facts(journal, after))
        if form == "jsonl":
            for line in lines:
                sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
            return
        writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for line in lines:
            writer.writerow({name: _cell(value) for name, value in line.items()})


class FactLines:
    """Turns facts into flat mappings; knows the action ids of every domain in the journal."""

    def __init__(self, journal: JournalReader) -> None:
        self._journal = journal
        self._actions: dict[str, list[str]] = {}

    def of(self, rows: Iterator[Row]) -> Iterator[dict[str, Json]]:
        """One mapping a fact."""
        for row in rows:
            yield self._line(row)

    def _line(self, row: Row) -> dict[str, Json]:
        kind = row.fact.WhichOneof("kind") or "unknown"
        time = datetime.datetime.fromtimestamp(row.time_ms / 1000, datetime.timezone.utc)
        line: dict[str, Json] = {
            "seq": row.seq,
            "time": time.isoformat(timespec="milliseconds"),
            "dialogue_id": row.dialogue_id,
            "fact": kind,
            "key": row.fact.key,
            "actor": row.actor,
        }
        if kind == "unknown":
            return line
        line |= plain(getattr(row.fact, kind))
        if kind == "decided":
            self._open_decided(line, row)
        if "last_state" in line:
            line["last_state"] = _observation(row.fact.ended.last_state)
        if line.pop("comment_only", False):
            line["comment"] = row.fact.feedback.comment
        return line

    def _open_decided(self, line: dict[str, Json], row: Row) -> None:
        decided = row.fact.decided
        line |= _observation(decided.observation)
        del line["observation"]
        actions = self._action_ids(decided.domain_fingerprint)
        probabilities = _floats(decided.probabilities)
        line["policy_version"] = version_text(decided.policy_version)
        if len(actions) == len(probabilities):
            line["probabilities"] = dict(zip(actions, probabilities, strict=True))
        else:
            line["probabilities"] = list(probabilities)
        if not decided.allowed:
            line["allowed"] = None
        elif actions:
            bits = int.from_bytes(decided.allowed, "little")
            line["allowed"] = [action for i, action in enumerate(actions) if bits >> i & 1]

    def _action_ids(self, fingerprint: str) -> list[str]:
        if fingerprint not in self._actions:
            text = self._journal.domain(fingerprint)
            self._actions[fingerprint] = [a["id"] for a in json.loads(text)["actions"]] if text else []
        return self._actions[fingerprint]


def _observation(observation: dialogue_pb2.Observation) -> dict[str, Json]:
    slots: dict[str, Json] = {}
    for slot in observation.slots:
        kind = slot.WhichOneof("value")
        slots[slot.name] = getattr(slot, kind) if kind else None
    opened: dict[str, Json] = {"text": observation.text if observation.HasField("text") else None}
    return opened | {"slots": slots, "features": list(_floats(observation.features))}


def _floats(data: bytes) -> list[float]:
    # seven digits tell any two float32 apart that people would: 0.1 stays 0.1
    return [float(f"{value:.7g}") for value in struct.unpack(f"<{len(data) // 4}f", data)]


def _cell(value: Json) -> str | int | float | bool | None:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
