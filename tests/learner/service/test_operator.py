import asyncio
import json
import os
from typing import Any

import grpc.aio
import pytest

from turnwise.v1 import dialogue_pb2, status_pb2, training_pb2, training_pb2_grpc
from turnwise_actor.policy import PolicyVersion
from turnwise_learner.service.journal import set_meta
from turnwise_learner.service.server import running

SOFTMAX = training_pb2.Exploration.SOFTMAX


async def test_status_tells_the_truth(operator, training, service, attach, make_facts, policy_of, eventually):
    report = training_pb2.ActorReport(address="127.0.0.1:50051", incarnation="x", turns=3)
    feedback = training_pb2.Fact(key="f:1", dialogue_id="a", feedback=training_pb2.Feedback(reward=1))
    ended = training_pb2.Fact(key="e:a:1", dialogue_id="a", ended=training_pb2.Ended())
    actor = training.AppendFacts()
    facts = [*make_facts("a", 3), feedback, ended]
    for sequence in (1, 2):
        await actor.write(training_pb2.FactBatch(sequence=sequence, facts=facts, report=report))
        await actor.read()
    async with attach(service) as trainer:
        await trainer.say(report=training_pb2.TrainerReport(lessons=7))
        await trainer.publish(policy_of(1, 1, learned_through=5))
        await eventually(lambda: service.broadcast.current)
        status = await operator.GetStatus(training_pb2.GetStatusRequest())
    assert (status.domain, status.domain_fingerprint) == ("shop", policy_of(1, 1).fingerprint)
    assert (status.dialogues, status.decisions, status.feedback, status.ended) == (1, 3, 1, 1)
    assert (status.journal_cursor, status.epoch, status.pid) == (6, 1, os.getpid())
    assert status.journal_id == service.journal.journal_id
    assert status.journal_bytes > 4096
    assert (status.trainer_alive, status.trainer.lessons) == (True, 7)
    assert (status.published.generation, status.published.number) == (1, 1)
    assert status.published_learned_through == 5
    (only,) = status.actors
    assert (only.connected, only.report) == (True, report)
    actor.cancel()

    async def all_away() -> bool:
        status = await operator.GetStatus(training_pb2.GetStatusRequest())
        return not status.trainer_alive and not status.actors[0].connected and status.trainer.lessons == 7

    await eventually(all_away)


async def test_a_status_is_sent_at_once_and_then_at_the_interval(operator, service):
    call = operator.WatchStatus(training_pb2.GetStatusRequest(interval_ms=60))
    began = asyncio.get_running_loop().time()
    for _ in range(4):
        assert (await call.read()).domain == "shop"
    assert 0.15 < asyncio.get_running_loop().time() - began < 2
    call.cancel()


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("SaveCheckpoint", training_pb2.SaveCheckpointRequest()),
        ("Rollback", training_pb2.RollbackRequest()),
        ("Pause", training_pb2.PauseRequest()),
        ("Resume", training_pb2.ResumeRequest()),
        ("SetExploration", training_pb2.SetExplorationRequest(mode=dialogue_pb2.TEACH, epsilon=0.0)),
    ],
)
async def test_without_a_trainer_a_call_for_it_is_unavailable_and_says_so(operator, call, request_):
    with pytest.raises(grpc.aio.AioRpcError, match="the trainer is away") as caught:
        await getattr(operator, call)(request_)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_trainers_checkpoint_is_answered_and_listed(operator, service, attach, policy_of):
    async with attach(service) as trainer:
        await trainer.publish(policy_of(1, 1))
        await trainer.publish(policy_of(1, 2))
        info = trainer.checkpoint(PolicyVersion(1, 1))
        asked = asyncio.create_task(trainer.answer(checkpoint=info))
        assert await operator.SaveCheckpoint(training_pb2.SaveCheckpointRequest(pin=True)) == info
        assert (await asked).save_checkpoint.pin
        listed = (await operator.ListVersions(training_pb2.ListVersionsRequest())).versions
        assert [(each.version.number, each.checkpoint) for each in listed] == [(2, ""), (1, info.path)]
        newest = (await operator.ListVersions(training_pb2.ListVersionsRequest(limit=1))).versions
        assert [each.version.number for each in newest] == [2]


async def test_a_rollback_begins_a_generation_and_names_the_checkpoint(operator, service, attach, policy_of):
    async with attach(service) as trainer:
        await trainer.publish(policy_of(1, 1))
        info = trainer.checkpoint(PolicyVersion(1, 1))
        await trainer.say(report=training_pb2.TrainerReport(last_checkpoint=info))
        published = dialogue_pb2.PolicyVersion(generation=2, number=1)
        asked = asyncio.create_task(trainer.answer(published=published))
        await operator_settles(operator)
        version = dialogue_pb2.PolicyVersion(generation=1, number=1)
        reply = await operator.Rollback(training_pb2.RollbackRequest(version=version))
        assert reply.published == published
        command = (await asked).rollback
        assert (command.checkpoint, command.generation) == (info.path, 2)


async def operator_settles(operator) -> None:
    while True:
        listed = (await operator.ListVersions(training_pb2.ListVersionsRequest())).versions
        if any(each.checkpoint for each in listed):
            return
        await asyncio.sleep(0.01)


async def test_a_rollback_to_a_version_without_a_checkpoint_names_those_with_one(
    operator, service, attach, policy_of
):
    async with attach(service) as trainer:
        for number in (1, 2):
            await trainer.publish(policy_of(1, number))
        info = trainer.checkpoint(PolicyVersion(1, 1))
        await trainer.say(report=training_pb2.TrainerReport(last_checkpoint=info))
        await operator_settles(operator)
        version = dialogue_pb2.PolicyVersion(generation=1, number=2)
        with pytest.raises(grpc.aio.AioRpcError, match=r"got 1\.2.*gone back to: 1\.1") as caught:
            await operator.Rollback(training_pb2.RollbackRequest(version=version))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        (trainer.data / "checkpoints" / "step-1.1" / "turnwise.json").unlink()
        (trainer.data / "checkpoints" / "step-1.1").rmdir()
        version.number = 1
        with pytest.raises(grpc.aio.AioRpcError, match=r"gone back to: none yet"):
            await operator.Rollback(training_pb2.RollbackRequest(version=version))


@pytest.mark.parametrize(
    ("mode", "given", "field", "wanted"),
    [
        (dialogue_pb2.EVALUATE, {"epsilon": 0.1}, "mode", "got EVALUATE; wanted TEACH or SERVE"),
        (dialogue_pb2.MODE_UNSPECIFIED, {"epsilon": 0.1}, "mode", "got MODE_UNSPECIFIED; wanted TEACH"),
        (77, {"epsilon": 0.1}, "mode", "got 77; wanted TEACH or SERVE"),
        (dialogue_pb2.SERVE, {"epsilon": 1.5}, "epsilon", "got 1.5; wanted a probability"),
        (dialogue_pb2.SERVE, {"epsilon": -0.1}, "epsilon", "got -0.1; wanted a probability"),
        (dialogue_pb2.SERVE, {"epsilon": float("nan")}, "epsilon", "got nan; wanted a probability"),
        (dialogue_pb2.TEACH, {"kind": 0}, "kind", "got KIND_UNSPECIFIED; wanted GREEDY or SOFTMAX"),
        (dialogue_pb2.TEACH, {"kind": 9}, "kind", "got 9; wanted GREEDY or SOFTMAX"),
        (dialogue_pb2.TEACH, {"temperature": 0.0}, "temperature", "got 0.0; wanted a finite number above 0"),
        (dialogue_pb2.TEACH, {"temperature": float("inf")}, "temperature", "got inf; wanted a finite"),
        (dialogue_pb2.TEACH, {}, "epsilon, kind, temperature", "got none of them; wanted at least one"),
    ],
)
async def test_a_wrong_exploration_is_refused_with_field_value_and_range(
    operator, mode, given, field, wanted
):
    with pytest.raises(grpc.aio.AioRpcError, match=wanted) as caught:
        await operator.SetExploration(training_pb2.SetExplorationRequest(mode=mode, **given))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    metadata: Any = caught.value.trailing_metadata()
    details = dict(metadata)["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    assert status.details[0].type_url == "type.googleapis.com/google.rpc.BadRequest"
    (violation,) = status_pb2.BadRequest.FromString(status.details[0].value).field_violations
    assert violation.field == field
    assert status.code == 3


async def test_the_trainers_refusal_reaches_the_operator(operator, service, attach):
    async with attach(service) as trainer:
        asked = asyncio.create_task(trainer.answer(error="the disk is full", code=8))
        with pytest.raises(grpc.aio.AioRpcError, match="the disk is full") as caught:
            await operator.SaveCheckpoint(training_pb2.SaveCheckpointRequest())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await asked


async def test_a_trainer_that_dies_before_it_answers_is_unavailable(operator, service, attach):
    async with attach(service) as trainer:
        asking = asyncio.ensure_future(operator.SaveCheckpoint(training_pb2.SaveCheckpointRequest()))
        await asyncio.wait_for(trainer.commands.get(), 5)
    with pytest.raises(grpc.aio.AioRpcError, match="went away before it answered") as caught:
        await asking
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_trainer_that_does_not_answer_runs_into_the_callers_deadline(operator, service, attach):
    async with attach(service):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await operator.Pause(training_pb2.PauseRequest(), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_pause_and_exploration_are_told_to_every_trainer_that_begins_later(config, attach):
    async with running(config) as service, attach(service) as trainer:
        channel = grpc.aio.insecure_channel(service.address)
        async with channel:
            operator: Any = training_pb2_grpc.OperatorStub(channel)
            asked = asyncio.create_task(trainer.answer(paused=True))
            assert (await operator.Pause(training_pb2.PauseRequest())).paused
            assert (await asked).pause
            asked = asyncio.create_task(
                trainer.answer(exploration=training_pb2.Exploration(teach_epsilon=0.5, serve_epsilon=0.02))
            )
            request = training_pb2.SetExplorationRequest(mode=dialogue_pb2.TEACH, epsilon=0.5)
            assert (await operator.SetExploration(request)).exploration.teach_epsilon == 0.5
            assert (await asked).set_exploration == request
            for later in (
                training_pb2.SetExplorationRequest(mode=dialogue_pb2.TEACH, kind=SOFTMAX, temperature=0.3),
                training_pb2.SetExplorationRequest(mode=dialogue_pb2.TEACH, epsilon=0.0),
            ):
                asked = asyncio.create_task(trainer.answer())
                await operator.SetExploration(later)
                assert (await asked).set_exploration == later
    async with running(config) as service, attach(service, "resume") as trainer:
        assert trainer.welcome.paused
        (order,) = trainer.welcome.exploration
        assert order == training_pb2.SetExplorationRequest(
            mode=dialogue_pb2.TEACH, epsilon=0.0, kind=SOFTMAX, temperature=0.3
        )


async def test_orders_from_before_the_kinds_are_read(config, attach):
    kept = {"paused": False, "teach_epsilon": None, "serve_epsilon": 0.25}
    async with running(config) as service:
        await service.journal.submit(lambda c: set_meta(c, "standing_orders", json.dumps(kept)))
    async with running(config) as service, attach(service, "resume") as trainer:
        assert not trainer.welcome.paused
        (order,) = trainer.welcome.exploration
        assert order == training_pb2.SetExplorationRequest(mode=dialogue_pb2.SERVE, epsilon=0.25)
