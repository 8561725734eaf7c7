"""Stores for tests: a folder, and a bucket of an S3-compatible server on loopback."""

import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Credentials of nobody; nothing is asked of any other machine."""

_numbers = itertools.count(1)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Buckets:
    """An S3-compatible server. Its environment must hold `ENVIRONMENT`."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def uri(self, bucket: str) -> str:
        """A store in a bucket."""
        return f"s3://{bucket}/bot/one?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def create(self) -> str:
        """A new bucket's name."""
        bucket = f"bucket-{next(_numbers)}"
        boto3.client("s3", endpoint_url=self.url).create_bucket(Bucket=bucket)
        return bucket

    def uploads(self, bucket: str) -> list[Any]:
        """Those that have begun in parts and have not ended."""
        answer = boto3.client("s3", endpoint_url=self.url).list_multipart_uploads(Bucket=bucket)
        return list(answer.get("Uploads", []))


@contextmanager
def bucket_server(port: int = 0) -> Iterator[Buckets]:
    """Serves until the end of the block."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        yield Buckets(server.get_host_and_port()[1])
    finally:
        server.stop()


@pytest.fixture(scope="session")
def _cloud() -> Iterator[Buckets]:
    with bucket_server() as server:
        yield server


@pytest.fixture
def buckets(_cloud: Buckets, monkeypatch: pytest.MonkeyPatch) -> Buckets:
    """A server, with credentials for it."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return _cloud
