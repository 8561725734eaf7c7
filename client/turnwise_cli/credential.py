"""`turnwise credential`: who may call, in a file that running servers follow."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from turnwise_actor.access.credentials import (
    CREDENTIALS,
    ROLES,
    CredentialFileError,
    add_certificate,
    add_credential,
    read_credentials,
    revoke_credentials,
)
from turnwise_cli.learner_calls import data_option

F = TypeVar("F", bound=Callable[..., Any])


def _file_options(function: F) -> F:
    file = click.option(
        "--file", type=click.Path(path_type=Path), help=f"The credential file; else {CREDENTIALS} in --data."
    )
    return file(data_option(function))


def _file(file: Path | None, data: Path) -> Path:
    return file or data / CREDENTIALS


@click.group(short_help="Add, list and revoke the credentials of callers.")
def command() -> None:
    """Add, list and revoke the credentials of callers.

    Servers that were started with the file follow it while they run, within about a second. The file holds
    digests of the tokens, never a token.
    """


@command.command(short_help="Add a credential; prints its token, once.")
@click.argument("name")
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, required=True, help="Repeatable.")
@click.option(
    "--days", type=click.FloatRange(min=0, min_open=True), help="Expires after so long; else never."
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests a second at each actor.")
@click.option("--certificate", is_flag=True, help="No token: a client certificate of that name is its proof.")
@_file_options
def add(
    name: str,
    roles: tuple[str, ...],
    days: float | None,
    rate: float | None,
    certificate: bool,
    file: Path | None,
    data: Path,
) -> None:
    """Add a credential for NAME and print its token, which nothing shows again.

    frontend: dialogues, for its users. teacher: dialogues, feedback in its own name alone. actor: brings
    facts to the learner. operator: status, checkpoints, rollback, exploration. A name may have several
    credentials: to replace a token, add one, hand it over, and revoke the old one by its id.
    """
    path = _file(file, data)
    new = not path.exists()
    try:
        if certificate:
            if days is not None or rate is not None:
                raise click.UsageError("--certificate takes neither --days nor --rate")
            add_certificate(path, name, roles)
        else:
            expires = None if days is None else datetime.now(timezone.utc) + timedelta(days=days)
            click.echo(add_credential(path, name, roles, expires, rate))
    except CredentialFileError as error:
        raise click.ClickException(str(error)) from error
    if new:
        click.echo(f"{path} is new: servers ask for credentials once they are started with it", err=True)


@command.command("list", short_help="List the credentials.")
@_file_options
def list_(file: Path | None, data: Path) -> None:
    """List names, ids, roles, expiry and rates."""
    try:
        principals = read_credentials(_file(file, data))
    except CredentialFileError as error:
        raise click.ClickException(str(error)) from error
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("name", "id", "roles", "expires", "rate"):
        table.add_column(column, no_wrap=True)
    for each in principals:
        until = (
            "never" if each.expires == math.inf else f"{datetime.fromtimestamp(each.expires):%Y-%m-%d %H:%M}"
        )
        roles = ", ".join(sorted(each.roles))
        table.add_row(escape(each.name), each.id, roles, until, f"{each.bucket.rate:g}")
    Console().print(table if principals else "there are no credentials: nobody may call")


@command.command(short_help="Revoke credentials.")
@click.argument("name_or_id")
@_file_options
def revoke(name_or_id: str, file: Path | None, data: Path) -> None:
    """Revoke all credentials of a name, or the one of an id (see `list`). Their streams end, too."""
    try:
        count = revoke_credentials(_file(file, data), name_or_id)
    except CredentialFileError as error:
        raise click.ClickException(str(error)) from error
    if not count:
        raise click.ClickException(
            f"there is no credential {name_or_id!r}; `turnwise credential list` lists them"
        )
    click.echo(f"revoked {count}")
