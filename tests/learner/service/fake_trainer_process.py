"""A trainer child that learns nothing: attaches, and on SIGTERM publishes a policy, saves and ends."""

import argparse
import ctypes
import json
import os
import queue
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from turnwise.v1 import dialogue_pb2, training_pb2, training_pb2_grpc
from turnwise_actor.access.client_access import LOCAL_TOKEN, ClientAccess
from turnwise_actor.policy import Domain, PolicyVersion, initial_policy
from turnwise_learner.journal import JournalReader, journal_path

_PR_SET_PDEATHSIG = 1


def main() -> None:
    # Kept back until it can be answered: the service takes the trainer for alive before that.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parser = argparse.ArgumentParser()
    for name in ("data", "domain", "service", "parent-pid", "keep-checkpoints"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--ignore-sigterm", action="store_true")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    assert os.getppid() == int(arguments.parent_pid)
    data = Path(arguments.data)
    sys.stdout.write(f"arguments {json.dumps(vars(arguments))}\n")
    sys.stdout.flush()

    said: queue.SimpleQueue[training_pb2.TrainerMessage | None] = queue.SimpleQueue()
    with JournalReader(journal_path(data)) as reader:
        hello = training_pb2.TrainerHello(pid=os.getpid(), cause="start", journal_id=reader.journal_id)
    said.put(training_pb2.TrainerMessage(hello=hello))
    access = ClientAccess(token_file=data / LOCAL_TOKEN)
    stub = training_pb2_grpc.TrainerStub(access.channel(arguments.service))
    call: Any = stub.Attach(iter(said.get, None))
    generation = next(call).welcome.generation

    def on_sigterm(*_: object) -> None:
        version = PolicyVersion(generation, 1)
        policy = replace(initial_policy(Domain.load(arguments.domain)), version=version)
        (data / "policies" / f"{version}.safetensors").write_bytes(policy.to_bytes())
        folder = data / "checkpoints" / f"step-{version}"
        folder.mkdir()
        (folder / "turnwise.json").write_text(json.dumps({"version": str(version)}))
        published = training_pb2.PolicyPublished(
            version=dialogue_pb2.PolicyVersion(generation=generation, number=1),
            file=f"{version}.safetensors",
            cause="start",
        )
        said.put(training_pb2.TrainerMessage(published=published))
        checkpoint = training_pb2.CheckpointInfo(path=str(folder))
        said.put(training_pb2.TrainerMessage(report=training_pb2.TrainerReport(last_checkpoint=checkpoint)))
        said.put(None)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if arguments.ignore_sigterm else on_sigterm)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    for _ in call:
        pass


if __name__ == "__main__":
    sys.exit(main())
