"""Calls to the learner's Operator service, with the options and errors that all such verbs share."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc

from turnwise.v1 import dialogue_pb2, training_pb2_grpc
from turnwise_actor.access.client_access import LOCAL_TOKEN, ClientAccess
from turnwise_cli.access import access_options

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


@dataclass(frozen=True)
class Learner:
    """The learner that a verb speaks to."""

    name: str
    """HOST:PORT as people know it."""
    address: str
    """HOST:PORT to connect to: the same, or its local door."""
    access: ClientAccess

    def channel(self) -> grpc.Channel:
        """A channel to it. Raises AccessError."""
        return self.access.channel(self.address)


def learner_options(function: F) -> F:
    """Adds the options that name the learner and what is brought to it; the function gets `learner`."""

    @access_options
    @functools.wraps(function)
    def call(*, learner: str | None, data: Path, access: ClientAccess, **rest: Any) -> Any:
        return function(learner=_find(learner, data, access), **rest)

    address = click.option("--learner", help=f"HOST:PORT; else as --data tells, else {DEFAULT_ADDRESS}.")
    return address(data_option(call))  # type: ignore[return-value]


def _find(learner: str | None, data: Path, access: ClientAccess) -> Learner:
    """The learner named, else the one of the data folder, by its local door if that can be opened."""
    if learner:
        return Learner(learner, learner, access)
    name = _written(data / "learner.address") or DEFAULT_ADDRESS
    door, token = _written(data / "learner.local"), data / LOCAL_TOKEN
    if door and access == ClientAccess() and os.access(token, os.R_OK):
        return Learner(name, door, ClientAccess(token_file=token))
    return Learner(name, name, access)


def _written(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


@contextlib.contextmanager
def operator(learner: Learner) -> Iterator[training_pb2_grpc.OperatorStub]:
    """A stub for the learner's operator calls.

    Raises:
        click.ClickException: A call inside the block failed; says why and what to change.
    """
    with learner.channel() as channel:
        try:
            yield training_pb2_grpc.OperatorStub(channel)
        except grpc.RpcError as error:
            raise click.ClickException(explain(error, learner.name)) from error


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
