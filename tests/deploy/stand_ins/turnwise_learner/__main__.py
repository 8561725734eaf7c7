"""A learner that learns nothing: hears the actors' reports, tells them in its status, and starts at once.

With LEARNER_EXIT set it writes a line and exits with that code instead.
"""

import argparse
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from turnwise.v1 import dialogue_pb2, training_pb2, training_pb2_grpc

GENERATION = dialogue_pb2.PolicyVersion(generation=1, number=1)


class Learner(training_pb2_grpc.TrainingServicer, training_pb2_grpc.OperatorServicer):
    def __init__(self):
        self.actors = {}

    def AppendFacts(self, request_iterator, context):
        address = ""
        try:
            for batch in request_iterator:
                address = batch.report.address
                self.actors[address] = batch.report
                yield training_pb2.Ack(sequence=batch.sequence)
        finally:
            self.actors.pop(address, None)

    def GetStatus(self, request, context):
        return training_pb2.LearnerStatus(
            trainer_alive=True,
            published=GENERATION,
            trainer=training_pb2.TrainerReport(policy_version=GENERATION),
            actors=[training_pb2.ActorStatus(report=r, connected=True) for r in self.actors.values()],
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--metrics-listen")
    for option in ("--domain", "--data", "--listen"):
        parser.add_argument(option, required=True)
    arguments = parser.parse_args()
    if code := os.environ.get("LEARNER_EXIT"):
        sys.stderr.write("the journal is of another planet\n")
        sys.exit(int(code))
    learner = Learner()  # type: ignore[abstract]
    # Waited for, with no handler: several of them may come at once, one for each thread of a killed parent.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    training_pb2_grpc.add_TrainingServicer_to_server(learner, server)
    training_pb2_grpc.add_OperatorServicer_to_server(learner, server)
    server.add_insecure_port(arguments.listen)
    server.start()
    if not os.environ.get("LEARNER_STUCK"):
        signal.sigwait({signal.SIGTERM})
        (Path(arguments.data) / "saved").write_text(f"{len(learner.actors)} actors were left")
    else:
        threading.Event().wait()
    server.stop(0)


main()
