"""`turnwise rollback`: go back to an earlier policy."""

import click

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_cli.learner_calls import Learner, learner_options, operator, version_text

ROLLBACK_TIMEOUT_S = 120.0


class VersionType(click.ParamType[dialogue_pb2.PolicyVersion]):
    """`GENERATION.NUMBER`."""

    name = "version"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> dialogue_pb2.PolicyVersion:
        """Parses `3.17`."""
        generation, _, number = str(value).partition(".")
        if not (generation.isdigit() and number.isdigit()):
            self.fail(f"got {value!r}; wanted GENERATION.NUMBER as listed by `turnwise versions`", param, ctx)
        return dialogue_pb2.PolicyVersion(generation=int(generation), number=int(number))


@click.command(short_help="Go back to an earlier policy version.")
@click.argument("version", type=VersionType())
@learner_options
def command(version: dialogue_pb2.PolicyVersion, learner: Learner) -> None:
    """Go back to the policy of VERSION, which must have a checkpoint (see `turnwise versions`).

    Begins a new generation; the journal keeps all that was taught since.
    """
    with operator(learner) as stub:
        reply = stub.Rollback(training_pb2.RollbackRequest(version=version), timeout=ROLLBACK_TIMEOUT_S)
    click.echo(f"went back to {version_text(version)}, published as {version_text(reply.published)}")
