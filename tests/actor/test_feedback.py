from __future__ import annotations

import time
from typing import Any

import pytest

from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import training_pb2
from turnwise_actor.config import ActorConfig, SpoolConfig

from .conftest import ActorFactory, eventually
from .frontend import refusal, seen
from .learner_end import LearnerEnd


async def test_feedback_is_answered_when_the_learner_has_it(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    _, bot = await new_actor()
    turn = await bot.act((await bot.start("d1")).token)
    receipt = await bot.feedback(turn, reward=0.5, feedback_id="f1", revision=9, comment="good")
    assert receipt.settled == pb.Receipt.LEARNER
    assert list(learner.facts)[receipt.journal_cursor - 1] == "f:f1"
    assert learner.facts["f:f1"].dialogue_id == "d1"
    assert learner.facts["f:f1"].feedback == training_pb2.Feedback(
        feedback_id="f1", decision_id=turn.decision_id, teacher="ann", revision=9, reward=0.5, comment="good"
    )


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ({"correction": "handoff"}, "correction", "handoff"),
        ({"retraction": pb.Retraction()}, "retraction", True),
        ({"comment_only": pb.Comment(), "comment": "hm"}, "comment_only", True),
        ({"reward": -1.0, "decision_id": ""}, "reward", -1.0),
    ],
)
async def test_each_kind_of_feedback_becomes_a_fact(
    new_actor: ActorFactory, learner: LearnerEnd, given: dict[str, Any], kind: str, value: object
) -> None:
    _, bot = await new_actor()
    turn = await bot.act((await bot.start()).token)
    await bot.feedback(turn, feedback_id="f1", **given)
    body = learner.facts["f:f1"].feedback
    assert body.WhichOneof("kind") == kind
    assert getattr(body, kind) == value
    assert body.comment == given.get("comment", "")


async def test_what_went_out_instead_is_a_delivery(new_actor: ActorFactory, learner: LearnerEnd) -> None:
    _, bot = await new_actor()
    turn = await bot.act((await bot.start()).token)
    instead = pb.Overridden(action="handoff", probability=0.25)
    await bot.feedback(turn, feedback_id="f1", overridden=instead, comment="had to")
    await bot.feedback(turn, feedback_id="f2", dropped=pb.Dropped())
    how = training_pb2.Delivered
    assert learner.facts["v:f1"].delivered == how(
        decision_id=turn.decision_id, how=how.OVERRIDDEN, action="handoff", probability=0.25, revision=1
    )
    assert learner.facts["f:f1"].feedback.comment == "had to"
    assert learner.facts["v:f2"].delivered.how == how.DROPPED
    assert "f:f2" not in learner.facts


async def test_the_teacher_may_be_somebody_else_and_no_token_is_needed(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    _, bot = await new_actor()
    turn = await bot.act((await bot.start()).token)
    await bot.feedback(turn, feedback_id="f1", teacher="bob", reward=1.0)
    await bot.feedback(turn, feedback_id="f2", token=b"", reward=1.0)
    assert learner.facts["f:f1"].feedback.teacher == "bob"
    assert learner.facts["f:f2"].feedback.teacher == ""


async def test_a_feedback_without_a_revision_gets_the_actors_clock(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    _, bot = await new_actor()
    turn = await bot.act((await bot.start()).token)
    await bot.feedback(turn, feedback_id="f1", revision=0, reward=1.0)
    assert abs(learner.facts["f:f1"].feedback.revision - 1000 * time.time()) < 60_000


async def test_the_tokens_facts_go_in_the_same_batch_before_the_feedback(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    _, away = await new_actor(learner_address="127.0.0.1:1")
    _, bot = await new_actor()
    turn = await away.act((await away.start("d1")).token)
    await bot.feedback(turn, feedback_id="f1", reward=1.0)
    assert learner.batches == [["s:d1", f"d:{turn.decision_id}", "f:f1"]]


@pytest.mark.parametrize("outcome", ["success", "failure", "goodbye"])
async def test_outcomes_that_terminate(new_actor: ActorFactory, learner: LearnerEnd, outcome: str) -> None:
    assert (await ended(new_actor, learner, outcome)).terminated


@pytest.mark.parametrize("outcome", ["idle", "handoff", "limit", "abandoned"])
async def test_outcomes_that_truncate(new_actor: ActorFactory, learner: LearnerEnd, outcome: str) -> None:
    assert not (await ended(new_actor, learner, outcome)).terminated


async def ended(new_actor: ActorFactory, learner: LearnerEnd, outcome: str) -> training_pb2.Ended:
    _, bot = await new_actor()
    turn = await bot.act((await bot.start("d1")).token)
    receipt = await bot.end(turn.token, outcome)
    assert receipt.settled == pb.Receipt.LEARNER
    fact = learner.facts[f"e:d1:{turn.decision_id}"]
    assert (fact.ended.outcome, fact.ended.decision_id) == (outcome, turn.decision_id)
    return fact.ended


async def test_an_end_carries_the_last_state_and_a_reward_for_the_dialogue(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    _, bot = await new_actor()
    turn = await bot.act((await bot.start("d1")).token)
    last = seen("bye", vip=False)
    receipt = await bot.end(turn.token, "limit", last_state=last, reward=-0.5, request_id="e1", revision=4)
    body = learner.facts[f"e:d1:{turn.decision_id}"].ended
    assert (body.last_state, list(body.history)) == (last, [turn.action])
    assert learner.facts["f:e1"].feedback == training_pb2.Feedback(
        feedback_id="e1", teacher="ann", revision=4, reward=-0.5
    )
    assert receipt.journal_cursor == list(learner.facts).index("f:e1") + 1


async def test_a_dialogue_without_turns_can_be_ended(new_actor: ActorFactory, learner: LearnerEnd) -> None:
    _, bot = await new_actor()
    await bot.end((await bot.start("d1")).token, "abandoned")
    assert set(learner.facts) == {"s:d1", "e:d1:"}


async def test_a_retried_feedback_is_one_fact_and_tells_the_cursor_again(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    (_, one), (_, other) = await new_actor(), await new_actor()
    turn = await one.act((await one.start()).token)
    receipts = [await bot.feedback(turn, feedback_id="f1", reward=1.0) for bot in (one, other, one)]
    assert len({receipt.journal_cursor for receipt in receipts}) == 1
    assert len(learner.of_kind("feedback")) == 1


async def test_while_the_learner_is_away_turns_are_answered_and_feedback_is_spooled(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    actor, bot = await new_actor()
    token = (await bot.start("d1")).token
    await eventually(lambda: actor.uplink.connected)
    await learner.stop()
    first = await bot.act(token)
    began_at = time.monotonic()
    receipt = await bot.feedback(first, feedback_id="f1", reward=1.0)
    assert time.monotonic() - began_at < 1.0
    assert (receipt.settled, receipt.journal_cursor) == (pb.Receipt.SPOOLED, 0)
    second = await bot.act(first.token)
    assert second.recorded
    assert (await bot.end(second.token)).settled == pb.Receipt.SPOOLED
    await learner.start()
    wanted = {
        "s:d1",
        f"d:{first.decision_id}",
        f"d:{second.decision_id}",
        "f:f1",
        f"e:d1:{second.decision_id}",
    }
    await eventually(lambda: set(learner.facts) == wanted)
    await eventually(lambda: actor.spool.size_bytes == 0)
    again = await bot.feedback(first, feedback_id="f1", reward=1.0)
    assert again.settled == pb.Receipt.LEARNER
    assert len(learner.facts) == len(wanted)


async def test_a_learner_known_to_be_away_is_not_waited_for(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    actor, bot = await new_actor()
    turn = await bot.act((await bot.start()).token)
    await learner.stop()
    await eventually(lambda: not actor.uplink.connected)
    await bot.feedback(turn, reward=1.0)
    began_at = time.monotonic()
    await bot.feedback(turn, reward=1.0)
    assert time.monotonic() - began_at < 0.15


async def test_a_learner_that_hangs_is_noticed(new_actor: ActorFactory, learner: LearnerEnd) -> None:
    actor, bot = await new_actor()
    turn = await bot.act((await bot.start()).token)
    await eventually(lambda: actor.uplink.connected)
    learner.answering.clear()
    assert (await bot.feedback(turn, feedback_id="f1", reward=1.0)).settled == pb.Receipt.SPOOLED
    await eventually(lambda: not actor.uplink.connected)
    learner.answering.set()
    await eventually(lambda: "f:f1" in learner.facts)
    await eventually(lambda: actor.spool.size_bytes == 0)


async def test_a_full_spool_is_told_and_nothing_is_trained_on(
    new_actor: ActorFactory, learner: LearnerEnd, config: ActorConfig
) -> None:
    actor, bot = await new_actor(learner_address="127.0.0.1:1", spool=SpoolConfig(max_bytes=1))
    begun = await bot.start("d1")
    turns = [await bot.act(begun.token) for _ in range(8)]
    # A first token can carry its facts; nothing else is promised for them.
    token = turns[0].token
    for _ in range(12):
        turns.append(await bot.act(token))
        token = turns[-1].token
    unrecorded = [turn for turn in turns if not turn.recorded]
    assert len(unrecorded) >= 5
    assert {turn.action for turn in unrecorded} == {"greet"}, "greedy"
    assert actor.uplink.pending_facts == 1 + len({t.decision_id for t in turns if t.recorded})
    told = await refusal(bot.feedback(turns[0], reward=1.0))
    assert (told.code, told.reason) == ("UNAVAILABLE", "NOT_RECORDED")
    told = await refusal(bot.end(token))
    assert (told.code, told.reason) == ("UNAVAILABLE", "NOT_RECORDED")


async def test_turns_that_are_not_recorded_are_named_by_the_next_fact(
    new_actor: ActorFactory, learner: LearnerEnd, config: ActorConfig
) -> None:
    _, full = await new_actor(
        learner_address="127.0.0.1:1", spool=SpoolConfig(max_bytes=1), spool_folder=config.spool_folder / "2"
    )
    _, bot = await new_actor()
    begun = await bot.start("d1")
    turns = [await full.act(begun.token)]
    while len([turn for turn in turns if not turn.recorded]) < 2:
        turns.append(await full.act(turns[-1].token))
    lost = [turn.decision_id for turn in turns if not turn.recorded]
    comment = {"feedback_id": "f1", "comment": "hm", "comment_only": pb.Comment()}
    await bot.feedback(turns[-1], **comment)
    assert learner.facts["f:f1"].unrecorded == lost
    after = await bot.act(turns[-1].token)
    assert (await eventually(lambda: learner.facts.get(f"d:{after.decision_id}"))).unrecorded == lost
    await bot.end(after.token)
    assert all(not fact.unrecorded for fact in learner.of_kind("ended"))


async def test_a_fact_that_the_learner_refuses_is_told_and_dropped(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    actor, bot = await new_actor()
    turn = await bot.act((await bot.start()).token)
    learner.refused["f:f1"] = "malformed"
    told = await refusal(bot.feedback(turn, feedback_id="f1", reward=1.0))
    assert told.code == "INTERNAL"
    assert "malformed" in told.message
    await eventually(lambda: actor.uplink.pending_facts == 0)
