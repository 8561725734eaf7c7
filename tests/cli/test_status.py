"""The status verb's picture of what a learner says."""

import io
import json

from rich.console import Console

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_cli.status import age, problems, render
from turnwise_cli.wire_json import plain

NOW = 1_700_000_000_000


def learner(**more):
    version = dialogue_pb2.PolicyVersion(generation=3, number=17)
    trainer = training_pb2.TrainerReport(
        journal_cursor=90,
        policy_version=version,
        turns=40,
        rated_turns=12,
        lessons=13,
        updates=104,
        updates_owed=3,
    )
    trainer.last_checkpoint.path = "/data/checkpoints/step-80"
    trainer.last_checkpoint.saved_ms = NOW - 300_000
    status = training_pb2.LearnerStatus(
        domain="quickstart",
        journal_cursor=100,
        published=version,
        published_learned_through=90,
        trainer=trainer,
        trainer_alive=True,
        started_ms=NOW - 7_200_000,
    )
    report = training_pb2.ActorReport(
        address="10.0.0.1:50051", policy_version=version, learned_through=85, turns=41
    )
    status.actors.add(report=report, connected=True, last_seen_ms=NOW - 2000)
    status.MergeFrom(training_pb2.LearnerStatus(**more))
    return status


def shown(status):
    console = Console(file=io.StringIO(), width=100)
    console.print(render(status, "localhost:50050", NOW))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_an_operator_looks_for_is_there():
    text = shown(learner())
    for told in (
        "10.0.0.1:50051",
        "3.17",
        "rated 12",
        "lessons 13",
        "104, owed 3",
        "10 facts behind",
        "step-80, 5 min",
    ):
        assert told in text, told
    assert "!" not in text


def test_parts_that_are_away_are_told():
    status = learner()
    status.trainer_alive = False
    status.actors[0].connected = False
    status.actors.add(connected=True).report.unrecorded_turns = 7
    status.trainer.warnings.append("dialogue feedback is not learned at gamma 0")
    told = problems(status)
    assert any("the trainer is away" in line and "logs/trainer.log" in line for line in told)
    status.trainer_restarts = 4
    assert "started again 4 times" in problems(status)[0]
    assert "actor 10.0.0.1:50051 is away" in told
    assert any("7 turns that are not recorded" in line for line in told)
    assert "actor 10.0.0.1:50051 is away" in shown(status)
    assert told[-1] == "dialogue feedback is not learned at gamma 0"


def test_how_each_mode_explores_is_told():
    status = learner()
    exploration = status.trainer.exploration
    exploration.serve_epsilon = 0.02
    assert "teach greedy, epsilon 0; serve greedy, epsilon 0.02" in shown(status)
    exploration.teach_kind, exploration.teach_temperature = training_pb2.Exploration.SOFTMAX, 0.25
    assert "teach softmax at temperature 0.25, epsilon 0; serve greedy, epsilon 0.02" in shown(status)
    assert plain(exploration)["teach_kind"] == "SOFTMAX"


def test_numbers_are_numbers_in_json():
    told = json.loads(json.dumps(plain(learner(journal_id="0123"))))
    assert told["journal_cursor"] == 100
    assert told["journal_id"] == "0123"
    assert told["actors"][0]["report"]["policy_version"] == {"generation": 3, "number": 17}


def test_ages_are_for_people():
    assert [age(ms) for ms in (-5, 8_000, 300_000, 9_000_000, 10**9)] == [
        "0 s",
        "8 s",
        "5 min",
        "2.5 h",
        "12 d",
    ]


def test_what_survives_the_loss_of_the_learners_disk_is_told():
    survives = "acknowledged facts survive a process crash, not the loss of the learner's disk"
    assert f"store none: {survives}" in " ".join(shown(learner()).split())
    store = training_pb2.StoreStatus(uri="s3://bucket/bot", shipped_through=70, checkpoint="step-80")
    text = " ".join(shown(learner(store=store)).split())
    assert f"s3://bucket/bot, step-80; {survives}" in text
    assert "shipped through 70 of 100" in text
    store.problems.append("the journal cannot be copied to the store (3 times): it is away")
    assert store.problems[0] in problems(learner(store=store))
    assert "! the journal cannot be copied" in shown(learner(store=store))
