import math

import pytest

from turnwise.v1 import training_pb2
from turnwise_learner.service.facts import refusal, to_rows


def fact(key="s:a", dialogue_id="a", **kind):
    return training_pb2.Fact(
        key=key, dialogue_id=dialogue_id, time_ms=5, **(kind or {"started": training_pb2.Started()})
    )


@pytest.mark.parametrize(
    ("malformed", "reason"),
    [
        (training_pb2.Fact(key="s:a", dialogue_id="a"), "kind: got none"),
        (fact(key=""), "key: got ''"),
        (fact(key="s:"), "key: got 's:'"),
        (fact(key="d:a"), "wanted 's:'"),
        (fact(key="s:" + "é" * 128), "key: got 258 bytes, wanted at most 256"),
        (fact(dialogue_id=""), "dialogue_id: got 0 bytes"),
        (fact(dialogue_id="é" * 65), "dialogue_id: got 130 bytes"),
        (fact(key="d:1", decided=training_pb2.Decided()), "decided.decision_id"),
        (fact(key="d:1", decided=training_pb2.Decided(decision_id="d" * 33)), "got 33 bytes"),
        (fact(key="d:1", decided=training_pb2.Decided(decision_id="d\0")), "printable ASCII"),
        (fact(key="f:1", feedback=training_pb2.Feedback(revision=2**63)), "feedback.revision"),
        (fact(key="v:1", delivered=training_pb2.Delivered(revision=2**63)), "delivered.revision"),
        (fact(key="f:1", feedback=training_pb2.Feedback(reward=math.nan)), "feedback.reward: got nan"),
    ],
)
def test_a_malformed_fact_is_refused_with_the_field_and_what_is_wanted(malformed, reason):
    assert reason in (refusal(malformed) or "")


@pytest.mark.parametrize(
    "good",
    [
        fact(key="s:" + "a" * 254),
        fact(key="d:1", decided=training_pb2.Decided(decision_id="1")),
        fact(key="v:1", delivered=training_pb2.Delivered()),
        fact(key="f:1", feedback=training_pb2.Feedback()),
        fact(key="e:a:1", ended=training_pb2.Ended()),
    ],
)
def test_every_kind_of_fact_becomes_a_row(good):
    rows, refused = to_rows([good], "here")
    assert not refused
    assert (rows[0].key, rows[0].actor, rows[0].time_ms) == (good.key, "here", 5)
    assert training_pb2.Fact.FromString(rows[0].body) == good


def test_refusals_leave_the_others_in_order():
    rows, refused = to_rows([fact(key="s:1"), fact(key="x"), fact(key="s:2")], "")
    assert [row.key for row in rows] == ["s:1", "s:2"]
    assert [each.key for each in refused] == ["x"]
