"""The verbs that read the journal alone: ledger, export, resume-report."""

import csv
import io
import json
import sqlite3
import struct
import time
from contextlib import closing

import pytest
from click.testing import CliRunner

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.policy import Domain
from turnwise_cli.verbs import cli
from turnwise_learner.journal import KINDS, create_schema, journal_path

ACTIONS = [{"id": "greet"}, {"id": "ask_size"}, {"id": "bye"}]
OF_OLD = dialogue_pb2.Observation(slots=[dialogue_pb2.Slot(name="gone", flag=True)])
AT_MS = 1_700_000_000_000


def make_domain(gamma=0.0, wait="0s"):
    state = {"text": {"encoder": "hashing", "size": 64}, "slots": {"vip": {"type": "bool"}}, "features": 2}
    rules = {"rewards": {"wait": wait}, "learning": {"gamma": gamma}}
    return Domain.from_mapping({"name": "shop", "state": state, "actions": ACTIONS, **rules})


FINGERPRINT = make_domain().fingerprint


class Journal:
    """A journal written by hand."""

    def __init__(self, data):
        self.data, self.at_ms = data, AT_MS
        with closing(self._open()) as connection:
            create_schema(connection)
            connection.execute("INSERT INTO domains VALUES (?, ?, 0)", (FINGERPRINT, make_domain().to_json()))
            connection.execute("INSERT INTO generations VALUES (1, 'start', 0), (2, 'resume', 1000)")
            self.id = connection.execute("SELECT value FROM meta WHERE name = 'journal_id'").fetchone()[0]

    def _open(self):
        return sqlite3.connect(journal_path(self.data), isolation_level=None)

    def add(self, key, dialogue_id="talk", **kind):
        fact = training_pb2.Fact(key=key, dialogue_id=dialogue_id, time_ms=self.at_ms, **kind)
        name = fact.WhichOneof("kind")
        row = (key, dialogue_id, KINDS[name or ""], fact.time_ms, "here:1", fact.SerializeToString())
        with closing(self._open()) as connection:
            connection.execute(
                "INSERT INTO facts (key, dialogue_id, kind, time_ms, actor, body) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )

    def under(self, domain):
        """From now on under another domain."""
        self.execute("UPDATE domains SET json = ?", domain.to_json())

    def execute(self, statement, *parameters):
        with closing(self._open()) as connection:
            connection.execute(statement, parameters)

    def decide(self, name, parent="", index=0, dialogue_id="talk", recorded=True, **more):
        more.setdefault("domain_fingerprint", FINGERPRINT)
        decided = training_pb2.Decided(
            decision_id=name,
            parent_id=parent,
            index=index,
            action="greet",
            recorded=recorded,
            **more,
        )
        self.add(f"d:{name}", dialogue_id, decided=decided)

    def rate(self, key, decision_id, revision, teacher="ann", **kind):
        feedback = training_pb2.Feedback(
            feedback_id=key, decision_id=decision_id, teacher=teacher, revision=revision, **kind
        )
        self.add(f"f:{key}", feedback=feedback)

    def ledger(self):
        """What `turnwise ledger --json` says."""
        return json.loads(self.run("ledger", "--json").output)

    def run(self, verb, *options):
        return CliRunner().invoke(cli, [verb, "--data", str(self.data), *options], standalone_mode=False)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path)
    journal.add("s:talk", started=training_pb2.Started(user="ann"))
    return journal


def counts(result):
    rows = [line.split() for line in result.output.splitlines() if line.split()[-1:][0].isdigit()]
    return {" ".join(row[:-1]): int(row[-1]) for row in rows}


def test_a_ledger_that_closes_says_so(journal):
    journal.decide("a")
    journal.decide("b", parent="a", index=1)
    journal.decide("c", parent="b", index=2)
    journal.decide("b2", parent="a", index=1)  # of a retry: never confirmed
    how = training_pb2.Delivered.OVERRIDDEN
    journal.add("v:1", delivered=training_pb2.Delivered(decision_id="b", how=how, action="bye", revision=1))
    journal.rate("1", "a", 1, reward=1.0)
    journal.rate("2", "a", 2, reward=-1.0)
    journal.rate("3", "a", 3, correction="bye")
    journal.rate("4", "b", 1, reward=1.0)
    journal.rate("5", "b", 2, retraction=True)
    journal.rate("6", "b", 1, teacher="bob", comment_only=True)
    journal.add("e:talk:c", ended=training_pb2.Ended(decision_id="c", outcome="success", terminated=True))
    result = journal.run("ledger")
    assert result.return_value == 0, result.output
    assert "closed: every turn is accounted for" in result.output
    told = counts(result)
    expected = {"decided": 4, "confirmed": 3, "shown": 2, "overridden": 1, "dropped": 0, "unconfirmed": 1}
    expected |= {"feedback": 6, "rated": 4, "applied": 2, "superseded": 1, "retracted": 1, "waiting": 0}
    expected |= {"retractions": 1, "comments": 1, "rated turns": 1, "ended": 1, "dialogues": 1}
    assert {name: told[name] for name in expected} == expected


def test_facts_may_lie_in_any_order(journal):
    journal.rate("1", "a", 1, reward=1.0)
    journal.decide("b", parent="a", index=1)
    journal.decide("a")
    assert journal.run("ledger").return_value == 0


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda j: j.decide("b", parent="gone", index=1), "names decision gone, which is not in the journal"),
        (lambda j: (j.decide("a"), j.decide("c", parent="a", index=2)), "follows turn 0: a gap in the turns"),
        (lambda j: j.decide("c", index=2), "has no parent; wanted only of turn 0"),
        (lambda j: j.rate("1", "gone", 1, reward=1.0), "feedback in dialogue talk names decision gone"),
        (lambda j: j.decide("x", dialogue_id="other"), "whose start is not in the journal"),
    ],
)
def test_a_ledger_that_does_not_close_names_what(journal, write, told):
    write(journal)
    result = journal.run("ledger")
    assert result.return_value == 1
    assert told in result.output


def test_of_two_ratings_of_one_revision_one_counts(journal):
    journal.decide("a")
    for key in ("1", "2"):
        journal.rate(key, "a", 5, reward=1.0)
    counted = journal.ledger()["counts"]
    assert (counted["rated"], counted["applied"], counted["superseded"]) == (2, 1, 1)


def unlearned(journal):
    told = journal.ledger()
    assert told["counts"]["rated"] == 1
    assert told["counts"]["applied"] == 0
    return told["not_learnable"]


def test_a_rating_that_teaches_nothing_says_why(journal):
    journal.decide("a", mode=dialogue_pb2.EVALUATE)
    journal.rate("1", "a", 1, reward=1.0)
    assert unlearned(journal) == {"evaluate": 1}


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda j: (j.decide("a", recorded=False), j.rate("1", "a", 1, reward=1.0)), "recorded=false"),
        (lambda j: (j.decide("a"), drop(j, "a"), j.rate("1", "a", 1, reward=1.0)), "undelivered"),
        (lambda j: (j.decide("a"), j.rate("1", "", 1, reward=1.0)), "whole dialogue at gamma 0"),
        (lambda j: (j.decide("a"), j.rate("1", "a", 1, correction="gone")), "action not in the domain"),
        (
            lambda j: (
                j.decide("a", observation=OF_OLD, domain_fingerprint="of an ancestor"),
                j.rate("1", "a", 1, reward=1.0),
            ),
            "state not in the domain",
        ),
    ],
)
def test_every_reason_for_teaching_nothing_is_named(journal, write, why):
    write(journal)
    assert unlearned(journal) == {why: 1}


def drop(journal, decision_id):
    how = training_pb2.Delivered.DROPPED
    journal.add("v:1", delivered=training_pb2.Delivered(decision_id=decision_id, how=how, revision=1))


def test_a_rating_waits_for_its_window_and_for_what_it_rates(journal):
    journal.at_ms = time.time_ns() // 1_000_000
    journal.decide("a")
    journal.rate("1", "a", 1, reward=1.0)
    journal.rate("2", "gone", 1, reward=1.0)
    assert journal.ledger()["counts"]["waiting"] == 1
    journal.under(make_domain(wait="365d"))
    assert journal.ledger()["counts"]["waiting"] == 2


def test_a_turn_answered_with_recorded_false_is_not_missing_once_a_later_fact_names_it(journal):
    journal.decide("b", parent="unkept", index=1)
    journal.rate("1", "unkept", 1, reward=1.0)
    assert journal.run("ledger").return_value == 1
    comment = training_pb2.Feedback(feedback_id="2", comment_only=True)
    journal.add("f:2", feedback=comment, unrecorded=["unkept"])
    told = journal.ledger()
    assert told["closed"]
    assert told["counts"]["unrecorded"] == 1
    assert told["not_learnable"] == {"recorded=false": 1}


def test_facts_that_the_learner_committed_and_that_are_gone_are_named(journal):
    journal.decide("a")
    journal.execute("INSERT INTO meta VALUES ('counts', ?)", json.dumps({KINDS["decided"]: 2}))
    result = journal.run("ledger")
    assert result.return_value == 1
    assert "2 facts of kind decided were committed, 1 are there" in result.output


def numbered(journal, *sequences):
    for sequence in sequences:
        comment = training_pb2.Feedback(feedback_id=str(sequence), comment_only=True)
        journal.add(f"f:{sequence}", feedback=comment, incarnation=0xABC, sequence=sequence)


def test_facts_that_an_actor_was_told_of_and_that_are_gone_are_named(journal):
    numbered(journal, 1, 2, 5, 9, 12)
    journal.execute("INSERT INTO not_kept VALUES ('0000000000000abc', 4)")
    journal.execute("INSERT INTO actors VALUES ('0000000000000abc', '10.0.0.7:50051', 8)")
    result = journal.run("ledger")
    assert result.return_value == 1
    who = "actor 10.0.0.7:50051 (process 0000000000000abc)"
    assert f"{who} was told that its facts 1 to 8 are in the journal; 4 are not: 3, 6 to 8" in result.output
    counted = journal.ledger()["counts"]
    assert (counted["facts"], counted["numbered"], counted["awaited"]) == (6, 5, 2)  # 10 and 11


def test_facts_that_an_actor_was_not_told_of_may_be_under_way(journal):
    numbered(journal, 2, 1, 6)
    journal.execute("INSERT INTO actors VALUES ('0000000000000abc', '10.0.0.7:50051', 2)")
    journal.execute("INSERT INTO actors VALUES ('0000000000000def', '10.0.0.8:50051', 0)")
    told = journal.ledger()
    assert told["closed"]
    assert told["counts"]["awaited"] == 3


def test_many_gaps_are_told_shortly(journal):
    numbered(journal, *range(2, 40, 2))
    journal.execute("INSERT INTO actors VALUES ('0000000000000abc', '10.0.0.7:50051', 40)")
    told = journal.ledger()["problems"]
    assert len(told) == 1
    assert told[0].endswith("21 are not: 1, 3, 5, 7, 9 and 15 more gaps")


def test_a_journal_of_before_facts_were_numbered_closes(journal):
    journal.decide("a")
    journal.execute("DROP TABLE actors")
    journal.execute("DROP TABLE not_kept")
    assert journal.run("ledger").return_value == 0


def two_turns(journal, **counted):
    """One rated turn and one more, and a checkpoint that has counted them."""
    journal.decide("a")
    journal.decide("b", parent="a", index=1)
    journal.rate("1", "a", 1, reward=1.0)
    right = {"rows": 2, "evicted": 0, "turns": 1, "rated_turns": 1, "held": 0}
    checkpoint(journal, "step-8", cursor=4, counted=right | counted)


def test_a_trainer_that_holds_what_the_journal_says_closes(journal):
    two_turns(journal, rows=1, evicted=1)
    journal.decide("later", parent="b", index=2)
    told = journal.ledger()
    assert told["problems"] == []
    assert told["trainer"]["source"] == "checkpoint step-8"


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        ({"rows": 1}, "has 2 learnable turns and last states up to fact 4, but replay + evicted is 1 + 0"),
        ({"evicted": 1}, "but replay + evicted is 2 + 1"),
        (
            {"turns": 2},
            "has 1 confirmed turns to learn from up to fact 4, but checkpoint step-8 has counted 2",
        ),
        ({"rated_turns": 0}, "has 1 rated turns to learn from"),
    ],
)
def test_a_trainer_that_holds_something_else_is_named(journal, counted, told):
    two_turns(journal, **counted)
    result = journal.run("ledger")
    assert result.return_value == 1
    assert told in result.output


def test_what_a_trainer_holds_back_is_not_compared(journal):
    two_turns(journal, rows=0, held=4)
    assert journal.run("ledger").return_value == 0


def test_export_gives_one_json_a_fact_with_names_for_bits_and_bytes(journal):
    seen = dialogue_pb2.Observation(text="hé", features=struct.pack("<2f", 0.1, -2))
    seen.slots.add(name="vip", flag=True)
    journal.decide(
        "a",
        observation=seen,
        allowed=bytes([0b101]),
        probabilities=struct.pack("<3f", 0.25, 0, 0.75),
        policy_version=dialogue_pb2.PolicyVersion(generation=3, number=17),
        mode=dialogue_pb2.SERVE,
    )
    lines = [json.loads(line) for line in journal.run("export").output.splitlines()]
    assert [line["fact"] for line in lines] == ["started", "decided"]
    wanted = {
        "seq": 2,
        "time": "2023-11-14T22:13:20.000+00:00",
        "text": "hé",
        "slots": {"vip": True},
        "features": [0.1, -2.0],
        "allowed": ["greet", "bye"],
        "probabilities": {"greet": 0.25, "ask_size": 0.0, "bye": 0.75},
        "policy_version": "3.17",
        "mode": "SERVE",
        "action": "greet",
    }
    assert {name: lines[1][name] for name in wanted} == wanted


def test_export_writes_csv_and_can_begin_after_a_cursor(journal):
    journal.rate("1", "a", 7, reward=0.5, comment="nice, really")
    [row] = csv.DictReader(io.StringIO(journal.run("export", "--format", "csv", "--after", "1").output))
    assert (row["fact"], row["reward"], row["comment"], row["teacher"]) == (
        "feedback",
        "0.5",
        "nice, really",
        "ann",
    )


def checkpoint(journal, name, cursor, journal_id=None, latest=True, counted=None):
    folder = journal.data / "checkpoints" / name
    folder.mkdir(parents=True)
    manifest = {"journal_id": journal_id or journal.id, "journal_cursor": cursor, "updates": 80}
    if counted:
        manifest |= {"counted": counted, "domain_fingerprint": FINGERPRINT}
    (folder / "turnwise.json").write_text(json.dumps(manifest | {"version": "2.5", "saved_ms": 1}))
    if latest:
        (folder.parent / "LATEST").write_text(name)


def test_resume_report_without_a_checkpoint_replays_everything(journal):
    journal.decide("a")
    result = journal.run("resume-report")
    assert result.return_value == 0
    told = counts(result)
    assert told["facts to replay"] == 2
    assert told["next generation"] == 3


def test_resume_report_names_the_checkpoint_and_what_comes_after(journal):
    checkpoint(journal, "step-80", cursor=1)
    journal.decide("a")
    result = journal.run("resume-report")
    assert result.return_value == 0
    assert "step-80" in result.output
    assert "2.5" in result.output
    told = counts(result)
    assert (told["its cursor"], told["journal cursor"], told["facts to replay"]) == (1, 2, 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cursor": 99}, "learned through 99, but the journal ends at 1"),
        ({"cursor": 1, "journal_id": "another"}, "belongs to journal another"),
    ],
)
def test_resume_report_tells_when_a_checkpoint_is_not_of_this_journal(journal, options, told):
    checkpoint(journal, "step-80", **options)
    result = journal.run("resume-report")
    assert result.return_value == 1
    assert told in result.output


def test_resume_report_tells_when_latest_names_nothing_and_what_is_there_instead(journal):
    checkpoint(journal, "step-80", cursor=1, latest=False)
    (journal.data / "checkpoints" / "LATEST").write_text("step-90")
    result = journal.run("resume-report")
    assert result.return_value == 1
    assert "LATEST names step-90" in result.output
    assert "step-80" in result.output
