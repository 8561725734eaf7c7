"""`turnwise check`: reads a domain and tells what is wrong with it and what follows from it."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("check")
@click.argument("domain", type=click.Path(path_type=Path))
@click.option(
    "--against",
    metavar="OLD",
    type=click.Path(path_type=Path),
    help="The domain that a checkpoint was learned with: checks that this one only adds to it.",
)
def command(domain: Path, against: Path | None) -> None:
    """Check a domain file: errors, warnings, and the size of what it makes.

    Exits with 1 if there is an error.
    """
    try:
        from turnwise_actor.policy import Domain, DomainError, check_domain
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error}; install it with: pip install 'turnwise[actor]'") from error
    try:
        new = Domain.load(domain)
        old = None if against is None else Domain.load(against)
    except DomainError as error:
        raise click.ClickException(str(error)) from error
    findings = check_domain(new, old)
    for finding in findings:
        click.echo(f"{finding.level:<8} {finding.field}: {finding.message}")
    if any(finding.level == "error" for finding in findings):
        raise SystemExit(1)
