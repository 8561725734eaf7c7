"""`turnwise learner`: the learner's own command line."""

import sys

import click

from turnwise_learner.__main__ import main


@click.command(
    short_help="Run the learner.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Run the learner; the same as `python -m turnwise_learner`."""
    sys.argv = ["turnwise learner", *arguments]
    main()
