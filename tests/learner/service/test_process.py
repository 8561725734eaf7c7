"""The service as a process of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.access.credentials import CREDENTIALS, add_credential
from turnwise_learner.journal import JournalReader, journal_path

FAKE_TRAINER = Path(__file__).with_name("fake_trainer_process.py")


class Learner:
    """`python -m turnwise_learner` on a data folder."""

    def __init__(self, config, *options: str, trainer: tuple[str, ...] = ()) -> None:
        self.data = config.data
        arguments = ["--domain", str(config.domain), "--data", str(config.data), "--listen", "127.0.0.1:0"]
        command = [sys.executable, "-m", "turnwise_learner", *arguments, *options]
        if trainer:
            command = [sys.executable, "-c", _WITH_TRAINER, str(config.domain), str(config.data), *trainer]
        self.address_file = config.data / "learner.address"
        self.address_file.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def address(self) -> str:
        deadline = time.monotonic() + 20
        while not self.address_file.exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self.address_file.read_text()

    def end(self, number: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
        """Exit code and what was logged."""
        self.process.send_signal(number)
        log = self.process.communicate(timeout=20)[1]
        return self.process.returncode, log


_WITH_TRAINER = """
import asyncio, logging, sys
from pathlib import Path
from typing import Any
from turnwise_learner.service import ServiceConfig, serve
logging.basicConfig(level="INFO")
domain, data, *trainer = sys.argv[1:]
asyncio.run(serve(ServiceConfig(Path(domain), Path(data), "127.0.0.1:0", trainer_command=(sys.executable,
    trainer[0]), trainer_options=tuple(trainer[1:]))))
"""


@pytest.fixture
def learners() -> Iterator[list[Learner]]:
    started: list[Learner] = []
    yield started
    for learner in started:
        if learner.process.poll() is None:
            learner.end()


@pytest.fixture
def start(config, learners):
    def start(*options: str, **more) -> Learner:
        learners.append(Learner(config, *options, **more))
        return learners[-1]

    return start


async def stream_until_dead(address: str, name: str, make_facts, acknowledged: list[str]) -> None:
    """Sends batches, up to 8 unanswered, until the connection breaks."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = training_pb2_grpc.TrainingStub(channel)
        call = stub.AppendFacts()
        waiting: dict[int, list[str]] = {}
        try:
            for sequence in range(1, 1_000_000):
                facts = make_facts(f"{name}.{sequence}", 20)
                waiting[sequence] = [fact.key for fact in facts]
                await call.write(training_pb2.FactBatch(sequence=sequence, facts=facts))
                while len(waiting) > 8:
                    ack = await call.read()
                    acknowledged += waiting.pop(ack.sequence)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, AttributeError):
            return


async def test_every_acknowledged_fact_outlives_kill_9(start, make_facts):
    acknowledged: list[str] = []
    for round_, alive_s in enumerate((0.2, 0.4, 0.7)):
        learner = start("--no-trainer")
        address = await asyncio.to_thread(learner.address)
        streams = [
            asyncio.create_task(stream_until_dead(address, f"{round_}.{n}", make_facts, acknowledged))
            for n in range(3)
        ]
        await asyncio.sleep(alive_s)
        await asyncio.to_thread(learner.end)
        await asyncio.gather(*streams)
    assert len(acknowledged) > 1000
    learner = start("--no-trainer")
    address = await asyncio.to_thread(learner.address)
    with JournalReader(journal_path(learner.data)) as reader:
        keys = [row.fact.key for row in reader.read_after(0, limit=10_000_000)]
    assert len(set(keys)) == len(keys)
    assert set(acknowledged) <= set(keys)
    with grpc.insecure_channel(address) as channel:
        status = training_pb2_grpc.OperatorStub(channel).GetStatus(training_pb2.GetStatusRequest())
    assert status.epoch == 4
    assert (status.dialogues, status.decisions) == (len(keys) // 21, len(keys) // 21 * 20)


def test_a_second_learner_on_the_same_data_folder_ends_with_a_message(start):
    first = start("--no-trainer")
    address = first.address()
    second = subprocess.run(first.process.args, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert second.returncode == 1
    assert f"another learner (pid {first.process.pid}) holds" in second.stderr
    assert first.address_file.read_text() == address


def test_a_taken_port_ends_with_a_message(start, config, tmp_path):
    first = start("--no-trainer")
    command = [*first.process.args[:3], "--domain", str(config.domain), "--data", str(tmp_path / "other")]
    command += ["--no-trainer", "--listen", first.address()]
    second = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=20, check=False)
    assert second.returncode == 1
    assert second.stderr.splitlines()[-1].endswith("is the port taken?")


def test_a_wrong_domain_file_ends_with_a_message(config, start):
    config.domain.write_text("name: shop\nstate: {}\nactions: []\n")
    learner = start("--no-trainer")
    assert learner.process.wait(20) == 78
    message = learner.process.communicate()[1]
    assert message.startswith("turnwise_learner: ")
    assert "Traceback" not in message


def test_a_learner_that_others_could_reach_does_not_start(start):
    refused = start("--no-trainer", "--listen", "0.0.0.0:0").process
    message = refused.communicate(timeout=20)[1]
    assert refused.returncode == os.EX_CONFIG
    assert "0.0.0.0:0 can be reached from other machines: wanted --tls-cert and --tls-key, and" in message
    assert "Traceback" not in message


def test_the_data_folders_credentials_are_taken_without_a_flag(start, config):
    add_credential(config.data / CREDENTIALS, "ann", ["operator"])
    with (
        grpc.insecure_channel(start("--no-trainer").address()) as channel,
        pytest.raises(grpc.RpcError) as no,
    ):
        training_pb2_grpc.OperatorStub(channel).GetStatus(training_pb2.GetStatusRequest(), timeout=5)
    assert no.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_health_and_reflection_answer(start):
    address = start("--no-trainer").address()
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "turnwise.v1.Training", "turnwise.v1.Operator"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"turnwise.v1.Training", "turnwise.v1.Operator", "grpc.health.v1.Health"} <= set(services)


def test_nothing_a_person_said_is_logged(start, make_facts):
    learner = start("--no-trainer", "--log-level", "debug")
    facts = make_facts("a", 2, text="my secret")
    facts.append(training_pb2.Fact(key="x", dialogue_id="a", decided=facts[1].decided))
    with grpc.insecure_channel(learner.address()) as channel:
        batches = iter([training_pb2.FactBatch(sequence=1, facts=facts)])
        (ack,) = training_pb2_grpc.TrainingStub(channel).AppendFacts(batches)
        assert len(ack.refused) == 1
    code, log = learner.end(signal.SIGTERM)
    assert code == 0
    assert "refused" in log
    assert "secret" not in log


def test_the_data_folder_is_laid_out_and_left_tidy(start, config):
    learner = start("--no-trainer")
    learner.address()
    names = {path.name for path in config.data.iterdir()}
    assert {"checkpoints", "policies", "spool", "logs", "journal.sqlite", "journal.lock"} <= names
    assert (config.data / "domain.json").read_text().startswith("{")
    with JournalReader(journal_path(config.data)) as reader:
        assert reader.last_generation() == 0
    assert learner.end(signal.SIGINT)[0] == 0
    assert not learner.address_file.exists()
    assert not (config.data / "journal.sqlite-wal").exists()


def status_when(address: str, holds) -> training_pb2.LearnerStatus:
    deadline = time.monotonic() + 20
    with grpc.insecure_channel(address) as channel:
        while True:
            status = training_pb2_grpc.OperatorStub(channel).GetStatus(training_pb2.GetStatusRequest())
            if holds(status):
                return status
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_on_sigterm_the_trainers_last_policy_and_checkpoint_are_recorded(start, config):
    learner = start(trainer=(str(FAKE_TRAINER), "--keep-checkpoints", "3"))
    status_when(learner.address(), lambda status: status.trainer_alive)
    code, log = learner.end(signal.SIGTERM)
    assert code == 0, log
    assert '"keep_checkpoints": "3"' in (config.data / "logs" / "trainer.log").read_text()
    again = start("--no-trainer")
    status = status_when(again.address(), lambda status: True)
    assert (status.published.generation, status.published.number) == (1, 1)
    with grpc.insecure_channel(again.address()) as channel:
        listed = training_pb2_grpc.OperatorStub(channel).ListVersions(training_pb2.ListVersionsRequest())
    (version,) = listed.versions
    assert (version.cause, Path(version.checkpoint).name) == ("start", "step-1.1")


def test_a_trainer_that_dies_is_replaced_and_counted(start, config):
    learner = start(trainer=(str(FAKE_TRAINER),))
    address = learner.address()
    status_when(address, lambda status: status.trainer_alive)
    log = config.data / "logs" / "trainer.log"
    child = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(learner.process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(child.stdout.split()[0]), signal.SIGKILL)
    status = status_when(address, lambda status: status.trainer_restarts == 1 and status.trainer_alive)
    assert status.epoch == 1
    assert log.read_text().count("arguments") == 2
    assert learner.end(signal.SIGTERM)[0] == 0


def test_a_second_signal_does_not_wait_for_the_trainer(start):
    learner = start(trainer=(str(FAKE_TRAINER), "--ignore-sigterm"))
    status_when(learner.address(), lambda status: status.trainer_alive)
    for _ in range(3):  # at once: the kernel sends one for each thread of a killed parent
        learner.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        learner.process.wait(1.5)
    assert learner.end(signal.SIGTERM)[0] == 0
