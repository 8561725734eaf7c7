"""`turnwise explore`: how the bot explores, and changing it while it runs."""

import click

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_cli.learner_calls import CALL_TIMEOUT_S, Learner, learner_options, operator

CHANGE_TIMEOUT_S = 30.0

_KINDS = training_pb2.Exploration.Kind


@click.command(short_help="Show or change how the bot explores.")
@learner_options
@click.option("--mode", type=click.Choice(["teach", "serve"]), help="The mode to change.")
@click.option("--epsilon", type=float, help="Share of answers drawn evenly from the allowed ones, 0 to 1.")
@click.option("--kind", type=click.Choice(["greedy", "softmax"]), help="What the others are drawn from.")
@click.option("--temperature", type=float, help="Of softmax, above 0: higher is more random.")
def command(
    learner: Learner,
    mode: str | None,
    epsilon: float | None,
    kind: str | None,
    temperature: float | None,
) -> None:
    """Show how the bot explores in teach and serve, or change it for one of them.

    What is not given stays as it is. A change holds from the next policy version on, at all actors, until it
    is changed again; shadow and evaluate never explore.
    """
    changes = epsilon is not None or kind is not None or temperature is not None
    if changes and mode is None:
        raise click.UsageError("which mode? --mode teach or --mode serve")
    with operator(learner) as stub:
        if changes:
            request = training_pb2.SetExplorationRequest(
                mode=dialogue_pb2.Mode.Value(str(mode).upper()),
                epsilon=epsilon,
                kind=None if kind is None else _KINDS.Value(kind.upper()),
                temperature=temperature,
            )
            exploration = stub.SetExploration(request, timeout=CHANGE_TIMEOUT_S).exploration
        else:
            status = stub.GetStatus(training_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)
            if not status.trainer.HasField("exploration"):
                raise click.ClickException("the trainer has not reported yet: try again when it has started")
            exploration = status.trainer.exploration
    for name, told in exploration_texts(exploration).items():
        if mode in (None, name):
            click.echo(f"{name}: {told}")
            if temperature is not None and "softmax" not in told:
                click.echo("the temperature is kept; it bears on --kind softmax alone", err=True)


def exploration_texts(exploration: training_pb2.Exploration) -> dict[str, str]:
    """Of each mode that explores: `greedy, epsilon 0.02`, `softmax at temperature 0.1, epsilon 0`."""
    return {
        "teach": _text(exploration.teach_kind, exploration.teach_temperature, exploration.teach_epsilon),
        "serve": _text(exploration.serve_kind, exploration.serve_temperature, exploration.serve_epsilon),
    }


def _text(kind: training_pb2.Exploration.Kind.ValueType, temperature: float, epsilon: float) -> str:
    if kind in (_KINDS.KIND_UNSPECIFIED, _KINDS.GREEDY):
        return f"greedy, epsilon {epsilon:g}"
    name = _KINDS.Name(kind).lower() if kind in _KINDS.values() else f"kind {kind}"
    return f"{name} at temperature {temperature:g}, epsilon {epsilon:g}"
