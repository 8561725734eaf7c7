"""A whole deployment for tests: real learner, trainer and actors, and what tests ask them."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from click.testing import CliRunner

import turnwise
from tests.waiting import eventually
from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.policy import ModeExploration, probabilities
from turnwise_cli.verbs import cli
from turnwise_deploy.local import LocalConfig, LocalDeployment
from turnwise_learner.journal import JournalReader, Row, journal_path

DOMAIN = Path(__file__).parents[2] / "examples/quickstart/domain.yaml"


@contextmanager
def deployed(
    data: Path, actors: int = 2, learner_arguments: tuple[str, ...] = ()
) -> Iterator[LocalDeployment]:
    """A learner and actors on free ports; drained at the end."""
    config = LocalConfig(
        domain=DOMAIN,
        data=data,
        actors=actors,
        port=0,
        learner_port=0,
        learner_arguments=learner_arguments,
    )
    with LocalDeployment(config) as up:
        yield up


def status(learner: str) -> training_pb2.LearnerStatus:
    """What the learner says of itself."""
    with grpc.insecure_channel(learner) as channel:
        stub = training_pb2_grpc.OperatorStub(channel)
        deadline = time.monotonic() + 10
        while True:
            try:
                return stub.GetStatus(training_pb2.GetStatusRequest(), timeout=10, wait_for_ready=True)
            except grpc.RpcError as error:  # it was killed with the call on its way
                if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                    raise


def wait_learned(actor: str, cursor: int) -> float:
    """Seconds until this actor answers from a policy that has learned the fact at `cursor`."""
    started = time.monotonic()
    with turnwise.Client(actor) as bot:

        def learned() -> bool:
            with bot.dialogue(mode="evaluate") as probe:
                return probe.act(text="hello").learned_through >= cursor

        eventually(learned)
    return time.monotonic() - started


def journal_rows(data: Path) -> list[Row]:
    """Every fact in the journal."""
    with JournalReader(journal_path(data)) as reader:
        return reader.read_after(0, 1_000_000)


def explore(learner: str, *options: str) -> str:
    """What `turnwise explore` prints."""
    ran = CliRunner().invoke(cli, ["explore", "--learner", learner, *options])
    assert ran.exit_code == 0, ran.output
    return ran.output


def explores(actor: str, data: Path, how: ModeExploration) -> bool:
    """Whether the next turn served here is journaled with the vector that `how` makes of its values."""
    with turnwise.Client(actor) as bot, bot.dialogue(mode="serve") as talk:
        turn = talk.act(text="how do you explore")

    def decided() -> list[training_pb2.Decided]:
        facts = (row.fact.decided for row in journal_rows(data) if row.kind == 2)
        return [decided for decided in facts if decided.decision_id == turn.decision_id]

    vector = np.frombuffer(eventually(decided)[0].probabilities, "<f4")
    assert turn.probability == vector[list(turn.q_values).index(turn.action)]
    values = np.array(list(turn.q_values.values()), np.float32)
    return np.array_equal(vector, probabilities(values, np.ones(len(values), bool), how))


def kill(pid: int | None) -> None:
    """kill -9."""
    assert pid
    os.kill(pid, signal.SIGKILL)
