"""What Prometheus reads from the learner is what `turnwise status` shows."""

import asyncio
import socket
import urllib.request
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from turnwise.v1 import training_pb2
from turnwise_learner.service.server import running

SOFTMAX = training_pb2.Exploration.SOFTMAX
REPORT = training_pb2.TrainerReport(
    journal_cursor=4,
    learned_through=3,
    turns=30,
    rated_turns=12,
    lessons=13,
    updates=104,
    updates_owed=8,
    updates_forgone=2,
    replay_rows=29,
    replay_capacity=1000,
    evicted_rows=1,
    last_checkpoint=training_pb2.CheckpointInfo(path="/x", saved_ms=1_700_000_000_500, journal_cursor=2),
    paused=True,
    loss=0.25,
    mean_abs_td_error=0.125,
    skipped_batches=5,
    exploration=training_pb2.Exploration(
        teach_epsilon=0.5, serve_epsilon=0.25, serve_kind=SOFTMAX, serve_temperature=0.75, teach_temperature=9
    ),
    counters={"forks": 6, "held": 7},
    started_ms=1_600_000_000_250,
    updates_per_s=1.5,
    warnings=["one", "two"],
)
OF_THE_REPORT = {
    "journal_cursor": 4,
    "learned_through": 3,
    "turns": 30,
    "rated_turns": 12,
    "lessons": 13,
    "updates": 104,
    "updates_owed": 8,
    "updates_forgone": 2,
    "updates_per_second": 1.5,
    "replay_rows": 29,
    "replay_capacity_rows": 1000,
    "replay_evicted_rows": 1,
    "checkpoint_timestamp_seconds": 1_700_000_000.5,
    "checkpoint_journal_cursor": 2,
    "start_time_seconds": 1_600_000_000.25,
    "paused": 1,
    "loss": 0.25,
    "mean_abs_td_error": 0.125,
    "skipped_batches": 5,
    "warnings": 2,
    "count forks": 6,
    "count held": 7,
    "exploration_epsilon teach": 0.5,
    "exploration_epsilon serve": 0.25,
    "exploration_temperature teach": 0,  # greedy: its temperature is kept, and not in force
    "exploration_temperature serve": 0.75,
    "up": 1,
    "restarts_total": 0,
}


@pytest.fixture
def config(config):
    return replace(config, metrics_listen="127.0.0.1:0")


async def scraped(service) -> dict[str, float]:
    """Values by name, that of the one label with it; infos by name alone."""

    def read() -> str:
        with urllib.request.urlopen(f"http://{service.metrics_address}/metrics", timeout=10) as answer:
            return answer.read().decode()

    told = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(read)):
        for sample in family.samples:
            labels = [] if family.name.endswith("_info") else sample.labels.values()
            told[" ".join((sample.name, *labels))] = sample.value
    return told


async def test_it_serves_what_the_operator_is_told(
    operator, training, service, attach, make_facts, policy_of, eventually
):
    actor = training.AppendFacts()
    feedback = training_pb2.Fact(key="f:1", dialogue_id="a", feedback=training_pb2.Feedback(reward=1))
    report = training_pb2.ActorReport(address="127.0.0.1:50051", incarnation="x")
    await actor.write(
        training_pb2.FactBatch(sequence=1, facts=[*make_facts("a", 3), feedback], report=report)
    )
    await actor.read()
    async with attach(service) as trainer:
        await trainer.say(report=REPORT)
        await trainer.publish(policy_of(1, 1, learned_through=5))
        await eventually(lambda: service.broadcast.current)
        await service._link.recorded()  # the journal grows by it
        status = await operator.GetStatus(training_pb2.GetStatusRequest())
        told = await scraped(service)
    assert status.trainer == REPORT
    trainers = {name: value for name, value in told.items() if name.startswith("turnwise_trainer_")}
    assert trainers == {f"turnwise_trainer_{name}": value for name, value in OF_THE_REPORT.items()}
    for name, value in {
        "dialogues_total": status.dialogues,
        "decisions_total": status.decisions,
        "feedback_total": status.feedback,
        "ended_total": status.ended,
        "epoch": status.epoch,
        "journal_cursor": status.journal_cursor,
        "journal_bytes": status.journal_bytes,
        "policy_generation": status.published.generation,
        "policy_number": status.published.number,
        "policy_learned_through": status.published_learned_through,
        "actors connected": 1,
        "actors away": 0,
        "info": 1,
    }.items():
        assert told[f"turnwise_learner_{name}"] == value, name
    assert (status.decisions, status.feedback, status.published_learned_through) == (3, 1, 5)
    assert told["turnwise_learner_disk_free_bytes"] > 0
    actor.cancel()

    async def all_away() -> bool:
        told = await scraped(service)
        return told["turnwise_trainer_up"] == 0 and told["turnwise_learner_actors away"] == 1

    await eventually(all_away)


async def test_a_taken_port_is_told_with_its_address(config, service, tmp_path):
    other = replace(config, data=tmp_path / "other", metrics_listen=service.metrics_address)
    with pytest.raises(OSError, match=f"metrics: cannot listen on {service.metrics_address}"):
        async with running(other):
            pass


async def test_the_port_is_closed_with_the_service(config):
    async with running(config) as service:
        host, _, port = service.metrics_address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


async def test_metrics_are_served_nowhere_unless_asked_for(config):
    async with running(replace(config, metrics_listen=None)) as service:
        assert service.metrics_address == ""
    with pytest.raises(ValueError, match="metrics_listen: got 'nowhere', wanted HOST:PORT"):
        replace(config, metrics_listen="nowhere")
