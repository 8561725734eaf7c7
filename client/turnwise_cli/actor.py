"""`turnwise actor`: the actor's own command line."""

import sys

import click

from turnwise_actor.__main__ import main


@click.command(
    short_help="Run one actor.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> int:
    """Run one actor; the same as `python -m turnwise_actor`."""
    sys.argv = ["turnwise actor", *arguments]
    return main()
