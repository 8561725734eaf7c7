"""An actor that answers nobody: is healthy, and reports to the learner ten times a second."""

import argparse
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from turnwise.v1 import dialogue_pb2, training_pb2, training_pb2_grpc


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--metrics-listen")
    for option in ("--domain", "--learner", "--listen", "--keys", "--spool"):
        parser.add_argument(option, required=True)
    arguments = parser.parse_args()
    # Waited for, with no handler: several of them may come at once, one for each thread of a killed parent.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    stopped = threading.Event()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    servicer = health.HealthServicer()
    servicer.set("turnwise.v1.Dialogue", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(arguments.listen)
    server.start()

    def reports():
        sequence = 0
        while not stopped.wait(0.1):
            sequence += 1
            report = training_pb2.ActorReport(
                address=arguments.listen,
                pid=os.getpid(),
                policy_version=dialogue_pb2.PolicyVersion(generation=1, number=1),
            )
            yield training_pb2.FactBatch(sequence=sequence, report=report)

    def report():
        while not stopped.is_set():
            with grpc.insecure_channel(arguments.learner) as channel:
                try:
                    for _ in training_pb2_grpc.TrainingStub(channel).AppendFacts(reports()):
                        pass
                except grpc.RpcError:
                    stopped.wait(0.1)

    reporting = threading.Thread(target=report)
    reporting.start()
    signal.sigwait({signal.SIGTERM})
    stopped.set()
    reporting.join()
    server.stop(0)


main()
