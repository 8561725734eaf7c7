"""The options with which a verb says what it brings to a server."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

import turnwise
from turnwise_actor.access.client_access import ClientAccess
from turnwise_actor.access.server_access import AccessError

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_OPTIONS = (
    click.option("--tls", is_flag=True, help="TLS with the system's CAs; --ca and --cert imply TLS."),
    click.option("--ca", type=_FILE, envvar="TURNWISE_CA", help="TLS: the CA of the server's certificate."),
    click.option("--cert", type=_FILE, envvar="TURNWISE_CERT", help="Mutual TLS: your own certificate."),
    click.option("--key", type=_FILE, envvar="TURNWISE_KEY", help="Its private key."),
    click.option("--token-file", type=_FILE, envvar="TURNWISE_TOKEN_FILE", help="Holds your bearer token."),
)


def client(addresses: list[str], access: ClientAccess) -> turnwise.AsyncClient:
    """A client of actors that brings what the options say.

    Raises:
        click.ClickException: The token would travel in plain text.
        AccessError: A file is wrong.
    """
    token = None if access.token_file is None else access.token
    try:
        return turnwise.AsyncClient(addresses, token, access.channel_credentials())
    except turnwise.InvalidRequest as error:
        raise click.ClickException(str(error)) from error


def access_options(function: F) -> F:
    """Adds `--tls`, `--ca`, `--cert`, `--key` and `--token-file`; the function gets them as `access`."""

    @functools.wraps(function)
    def call(
        *,
        tls: bool,
        ca: Path | None,
        cert: Path | None,
        key: Path | None,
        token_file: Path | None,
        **rest: Any,
    ) -> Any:
        try:
            access = ClientAccess(tls=tls, ca=ca, certificate=cert, key=key, token_file=token_file)
            return function(access=access, **rest)
        except AccessError as error:
            raise click.ClickException(str(error)) from error

    for option in reversed(_OPTIONS):
        call = option(call)
    return call  # type: ignore[return-value]
