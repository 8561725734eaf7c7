"""Calls to the learner's Operator service, with the options and errors that all such verbs share."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc

from turnwise.v1 import dialogue_pb2, training_pb2_grpc

DEFAULT_ADDRESS = "localhost:50050"
CALL_TIMEOUT_S = 5.0

F = TypeVar("F", bound=Callable[..., Any])

data_option = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("turnwise-data"),
    show_default=True,
    help="The data folder.",
)


def learner_options(function: F) -> F:
    """Adds `--learner` and `--data`, both of which name the learner."""
    address = click.option("--learner", help=f"HOST:PORT; else as --data tells, else {DEFAULT_ADDRESS}.")
    return address(data_option(function))


def learner_address(learner: str | None, data: Path) -> str:
    """The address given, else the one that the learner of the data folder wrote down, else the default."""
    if learner:
        return learner
    try:
        return (data / "learner.address").read_text().strip() or DEFAULT_ADDRESS
    except (FileNotFoundError, NotADirectoryError):
        return DEFAULT_ADDRESS


@contextlib.contextmanager
def operator(address: str) -> Iterator[training_pb2_grpc.OperatorStub]:
    """A stub for the learner's operator calls.

    Raises:
        click.ClickException: A call inside the block failed; says why and what to change.
    """
    with grpc.insecure_channel(address) as channel:
        try:
            yield training_pb2_grpc.OperatorStub(channel)
        except grpc.RpcError as error:
            raise click.ClickException(explain(error, address)) from error


def explain(error: grpc.RpcError, address: str) -> str:
    """One line about a failed call to the learner."""
    code = error.code() if isinstance(error, grpc.Call) else None
    details = (error.details() if isinstance(error, grpc.Call) else None) or str(error)
    # "failed to connect to all addresses; last error: ..." and the like: written by gRPC, not the learner
    unreached = code == grpc.StatusCode.UNAVAILABLE and ("connect" in details or "ocket" in details)
    if unreached or code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"the learner at {address} does not answer; is `turnwise up` running? "
            "Another one is named with --learner HOST:PORT or --data FOLDER"
        )
    return f"the learner at {address} says: {details}"


def version_text(version: dialogue_pb2.PolicyVersion) -> str:
    """`3.17`; `none` before the first."""
    return f"{version.generation}.{version.number}" if version.generation or version.number else "none"
