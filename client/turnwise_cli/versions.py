"""`turnwise versions`: what was published, and what can be gone back to."""

import time
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from turnwise.v1 import training_pb2
from turnwise_cli.learner_calls import (
    CALL_TIMEOUT_S,
    Learner,
    learner_options,
    operator,
    version_text,
)

PIPED_WIDTH = 160
"""Characters a line where no terminal says how wide it is."""


@click.command(short_help="List the policy versions.")
@learner_options
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many, newest first."
)
def command(learner: Learner, limit: int) -> None:
    """List the policy versions, newest first.

    Those with a checkpoint can be gone back to: `turnwise rollback VERSION`.
    """
    with operator(learner) as stub:
        request = training_pb2.ListVersionsRequest(limit=limit)
        versions = stub.ListVersions(request, timeout=CALL_TIMEOUT_S).versions
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("version", "published", "learned through", "updates", "began by", "checkpoint"):
        right = name in ("learned through", "updates")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for item in versions:
        published = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.published_ms / 1000))
        table.add_row(
            version_text(item.version),
            published,
            f"{item.learned_through:,}",
            f"{item.updates:,}",
            escape(item.cause),
            escape(Path(item.checkpoint).name if item.checkpoint else ""),
        )
    console = Console()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    console.print(table if versions else "no version has been published yet")
