"""`python -m turnwise_deploy.health HOST:PORT`: exit code 0 if an actor or a learner serves, 1 if not.

For the health checks of containers. What it brings is in the variables of the `turnwise` command.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from turnwise_actor.access.client_access import ClientAccess
from turnwise_actor.access.server_access import AccessError

CALL_TIMEOUT_S = 3.0


def _access() -> ClientAccess:
    files = (os.environ.get(f"TURNWISE_{name}") for name in ("CA", "CERT", "KEY"))
    ca, certificate, key = (Path(file) if file else None for file in files)
    return ClientAccess(ca=ca, certificate=certificate, key=key)


def main(arguments: list[str] | None = None) -> int:
    """Asks once."""
    parser = argparse.ArgumentParser(prog="python -m turnwise_deploy.health", description=__doc__)
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--service", default="", help="one of the server's services; default: the server")
    given = parser.parse_args(arguments)
    try:
        with _access().channel(given.address) as channel:
            asked = health_pb2.HealthCheckRequest(service=given.service)
            answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=CALL_TIMEOUT_S)
    except AccessError as error:
        print(f"health: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except grpc.RpcError as error:
        reason = f"{error.code().name} {error.details()}" if isinstance(error, grpc.Call) else str(error)
        print(f"health: {given.address}: {reason}", file=sys.stderr)  # noqa: T201
        return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))  # noqa: T201
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
