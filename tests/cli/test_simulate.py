"""The simulate verb over a fake actor."""

import json

import pytest
from click.testing import CliRunner

from turnwise.testing import FakeActor
from turnwise_cli.verbs import cli


@pytest.fixture
def actor():
    with FakeActor(["greet", "bye"], slots={"vip": bool, "intent": ["a", "b"]}, features=3) as fake:
        yield fake


def simulate(actor, *options):
    result = CliRunner().invoke(cli, ["simulate", actor.address, *options], standalone_mode=False)
    return result.return_value, json.loads(result.stdout.splitlines()[-1])


def test_people_talk_rate_and_leave(actor):
    code, told = simulate(actor, "--dialogues", "12", "--at-once", "4")
    assert code == 0
    assert told["dialogues"] == 12 == len(actor.ends)
    assert told["turns"] == len(actor.received) == told["ratings"] == len(actor.feedback)
    assert set(told["act_ms"]) == {"p50", "p99"}
    assert {given.value for given in actor.feedback} == {1.0, -1.0}


def test_one_phrase_has_one_right_answer(actor):
    simulate(actor, "--dialogues", "10", "--at-once", "1", "--phrases", "3")
    rewards = {}
    for act, given in zip(actor.received, actor.feedback, strict=True):  # the fake always answers the same
        rewards.setdefault(act.text, set()).add(given.value)
    assert 1 <= len(rewards) <= 3
    assert all(len(values) == 1 for values in rewards.values())


def test_errors_are_counted_and_the_others_go_on():
    def fail_late(act):
        if act.index == 2:
            raise ValueError("no third turn")
        return "greet"

    with FakeActor(["greet", "bye"], fail_late) as actor:
        code, told = simulate(actor, "--dialogues", "8", "--at-once", "1")
    assert code == 1
    assert told["errors"]["ServerFault"] > 0
    assert told["dialogues"] + told["errors"]["ServerFault"] == 8


def test_the_rate_is_kept(actor):
    _, told = simulate(actor, "--dialogues", "5", "--rate", "20", "--rated", "0")
    assert told["ratings"] == 0
    assert told["turns_per_s"] <= 25
