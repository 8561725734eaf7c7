"""`turnwise checkpoint`: save one now."""

import click

from turnwise.v1 import training_pb2
from turnwise_cli.learner_calls import Learner, learner_options, operator

SAVE_TIMEOUT_S = 120.0


@click.command(short_help="Save a checkpoint now.")
@learner_options
@click.option("--pin", is_flag=True, help="Keep it until it is removed by hand.")
def command(learner: Learner, pin: bool) -> None:
    """Save a checkpoint now; returns when it is complete on disk, and prints its folder."""
    with operator(learner) as stub:
        saved = stub.SaveCheckpoint(training_pb2.SaveCheckpointRequest(pin=pin), timeout=SAVE_TIMEOUT_S)
    click.echo(saved.path)
    pinned = ", pinned" if saved.pinned else ""
    click.echo(f"{saved.updates:,} updates, journal cursor {saved.journal_cursor:,}{pinned}", err=True)
