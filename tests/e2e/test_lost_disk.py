"""The learner's disk is gone: another learner goes on from the store, with the actor that is there."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import turnwise
from tests.e2e.deployment import DOMAIN, journal_rows, status, wait_learned
from tests.object_store import Buckets, _cloud, buckets, free_port  # noqa: F401
from tests.waiting import alive, eventually
from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_deploy.data_folder import DataFolder

pytestmark = pytest.mark.timeout(360)


@contextmanager
def process(*command: object) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process; killed at the end if it is still there."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, *map(str, command)], env=environment) as running:
        try:
            yield running
        finally:
            running.kill()


def test_another_learner_goes_on_with_what_was_taught(buckets: Buckets, tmp_path: Path) -> None:  # noqa: F811
    data, address = tmp_path / "data", f"127.0.0.1:{free_port()}"
    learner = ("-m", "turnwise_learner", "--domain", DOMAIN, "--data", data, "--listen", address)
    store = ("--checkpoint-store", buckets.uri(buckets.create()), "--ship-journal-every", 0.2)
    keys, actor_address = DataFolder(tmp_path).ensure_keys(), tmp_path / "actor"
    actor = ("-m", "turnwise_actor", "--domain", DOMAIN, "--learner", address, "--listen", "127.0.0.1:0")
    places = ("--keys", keys, "--spool", tmp_path / "spool", "--address-file", actor_address)
    with process(*actor, *places):
        with process(*learner, *store) as first:
            eventually(actor_address.exists)
            actor_at = actor_address.read_text()
            eventually(lambda: any(a.report.policy_version.generation for a in status(address).actors), 120)
            with turnwise.Client(actor_at) as bot:
                talk = bot.dialogue(user="ann")
                receipt = talk.act(text="hello").reward(1)
                assert receipt.settled == "LEARNER"
                wait_learned(actor_at, receipt.journal_cursor)
                with grpc.insecure_channel(address) as channel:
                    operator = training_pb2_grpc.OperatorStub(channel)
                    saved = operator.SaveCheckpoint(training_pb2.SaveCheckpointRequest(), timeout=30)
                name = Path(saved.path).name
                eventually(lambda: status(address).store.checkpoint == name)
                eventually(lambda: (s := status(address)).store.shipped_through == s.journal_cursor)
                before = status(address)
                facts = {row.fact.key for row in journal_rows(data)}
                first.send_signal(signal.SIGKILL)
                eventually(lambda: not alive(before.trainer.pid))
        shutil.rmtree(data)
        with process(*learner, *store), turnwise.Client(actor_at) as bot:
            eventually(lambda: status(address).trainer_alive, 120)
            eventually(lambda: status(address).trainer.updates)
            after = status(address)
            assert after.trainer.updates >= saved.updates > 0
            assert f"restored {name}" in (data / "logs" / "trainer.log").read_text()
            assert facts <= {row.fact.key for row in journal_rows(data)}
            assert after.journal_id == before.journal_id
            assert after.published.generation > before.published.generation
            receipt = bot.resume(talk.token).act(text="hello again").reward(1)
            assert receipt.settled == "LEARNER"
            wait_learned(actor_at, receipt.journal_cursor)
            eventually(lambda: status(address).trainer.rated_turns == 2)
