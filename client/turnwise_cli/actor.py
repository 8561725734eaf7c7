"""`turnwise actor`: the actor's own command line."""

import importlib
import runpy
import sys

import click


@click.command(
    short_help="Run one actor.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Run one actor; the same as `python -m turnwise_actor`."""
    importlib.import_module("turnwise_actor.__main__")  # a missing extra shows here
    sys.argv = ["turnwise actor", *arguments]
    runpy.run_module("turnwise_actor", run_name="__main__")
