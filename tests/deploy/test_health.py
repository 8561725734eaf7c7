"""The health check of containers, against real servers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.authority import Authority
from turnwise_deploy.health import main

SERVICE = "turnwise.v1.Dialogue"


@pytest.fixture
def server() -> Iterator[tuple[grpc.Server, health.HealthServicer]]:
    with ThreadPoolExecutor(2) as threads:
        server, servicer = grpc.server(threads), health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        yield server, servicer
        server.stop(None).wait()


@pytest.fixture(autouse=True)
def nothing_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CA", "CERT", "KEY"):
        monkeypatch.delenv(f"TURNWISE_{name}", raising=False)


def test_a_server_is_healthy_until_it_drains(server: tuple[grpc.Server, health.HealthServicer]) -> None:
    running, servicer = server
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    asked = [f"127.0.0.1:{port}", "--service", SERVICE]
    assert main(asked) == 1, "it has not said yet that it serves"
    servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    assert main(asked) == 0
    servicer.enter_graceful_shutdown()
    assert main(asked) == 1


def test_mutual_tls_is_spoken_with_the_variables_of_the_command_line(
    server: tuple[grpc.Server, health.HealthServicer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, _ = server
    authority = Authority(tmp_path)
    own, brought = authority.issue("server"), authority.issue("probe")
    credentials = grpc.ssl_server_credentials(
        [(own.key.read_bytes(), own.certificate.read_bytes())], authority.file.read_bytes(), True
    )
    address = f"localhost:{running.add_secure_port('127.0.0.1:0', credentials)}"
    running.start()
    monkeypatch.setenv("TURNWISE_CA", str(authority.file))
    assert main([address]) == 1, "no certificate was brought"
    monkeypatch.setenv("TURNWISE_CERT", str(brought.certificate))
    monkeypatch.setenv("TURNWISE_KEY", str(brought.key))
    assert main([address]) == 0


def test_nobody_there_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("health: 127.0.0.1:1: UNAVAILABLE")
