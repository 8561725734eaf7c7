"""`turnwise cluster`: the bot on many machines, with Ray.

Verbs take the cluster file and do their work on its head; on the head itself they are called without it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from turnwise_actor.access.server_access import AccessError, ServerAccess
from turnwise_deploy.cluster import Cluster, ClusterError
from turnwise_deploy.cluster_file import ClusterFileError
from turnwise_deploy.local import LocalConfig
from turnwise_deploy.post import DATA, Order, PostError, posts

if TYPE_CHECKING:
    from turnwise_deploy.placement import Placed

_PATH = click.Path(path_type=Path)
_DATA = click.option("--data", type=_PATH, default=DATA, show_default=True, help="Data folder of each node.")
_STOP_S = 150.0


def _file(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """Adds the cluster file, which names the head where the work is done."""
    kind = click.Path(path_type=Path, exists=True, dir_okay=False)
    return click.argument("file", type=kind, required=False)(function)


@click.group(short_help="Run the bot on many machines, with Ray.")
def command() -> None:
    """Run the bot on many machines, with Ray.

    `turnwise cluster up FILE` launches what a cluster file of `ray up` describes: the learner on the head,
    actors on the workers. The other verbs take the same FILE; on the head itself they are called without it.
    """


@command.command(short_help="Launch a cluster, or bring it up to date.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--wait", type=float, default=600.0, show_default=True, help="Seconds until the bot must answer."
)
@click.option("--fresh", is_flag=True, help="Set machines of your own up anew: one has lost its disk.")
def up(file: Path, wait: float, fresh: bool) -> None:
    """Launch a cluster, or bring it up to date, and return when the bot answers.

    Prints `ready actors=HOST:PORT,... learner=HOST:PORT` last.
    """
    with _told():
        Cluster.of(file, _say).up(wait, fresh)


@command.command(short_help="Place the learner and the actors; called by the cluster file on the head.")
@click.option("--domain", type=_PATH, required=True, help="The domain file on the head.")
@_DATA
@click.option(
    "--actors",
    type=int,
    default=LocalConfig.actors,
    show_default=True,
    help="How many; one a unit of actor_node.",
)
@click.option(
    "--port", type=int, default=LocalConfig.port, show_default=True, help="Of the first actor of a node."
)
@click.option(
    "--learner-port",
    type=int,
    default=LocalConfig.learner_port,
    show_default=True,
    help="Port of the learner.",
)
@click.option(
    "--metrics-port", type=int, help="Of the learner's metrics for Prometheus; a node's actors have the next."
)
@click.option("--tls-cert", type=_PATH, help="TLS: the servers' certificate chain on each node, PEM.")
@click.option("--tls-key", type=_PATH, help="Its private key, PEM.")
@click.option("--tls-client-ca", type=_PATH, help="Mutual TLS: clients need a certificate of this CA, PEM.")
@click.option("--credentials", type=_PATH, help="Who may call what, see `turnwise credential`.")
@click.option("--insecure", is_flag=True, help="Listen in plain text, for anybody who reaches the nodes.")
@click.option("--learner-arg", "learner_arguments", multiple=True, help="One more of `turnwise learner`.")
@click.option("--actor-arg", "actor_arguments", multiple=True, help="One more argument of `turnwise actor`.")
@click.option(
    "--outlive",
    "outlive_s",
    type=float,
    default=Order.outlive_s,
    show_default=True,
    help="Seconds that actors go on answering when the cluster is gone.",
)
def place(
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    credentials: Path | None,
    insecure: bool,
    **settings: object,
) -> None:
    """Place the learner and the actors on the Ray cluster of this machine, its head.

    May be called again, with other options too: what is to run as before is not disturbed.
    """
    with _told():
        from turnwise_deploy import placement

        access = ServerAccess(tls_cert, tls_key, tls_client_ca, credentials, insecure)
        config = placement.ClusterConfig(access=access, **settings)  # type: ignore[arg-type]
        with placement.connected():
            placement.place(config, _say)


@command.command(short_help="Show where everything runs.")
@_file
@click.option("--wait", type=float, metavar="SECONDS", help="Wait until the bot answers; print a ready line.")
def status(file: Path | None, wait: float | None) -> None:
    """Show where the learner and the actors run."""
    with _told():
        if file is not None:
            return Cluster.of(file, _say).on_head(
                "status", *(() if wait is None else ("--wait", f"{wait:g}"))
            )
        from turnwise_deploy import placement

        with placement.connected():
            parts = placement.describe() if wait is None else placement.wait_ready(wait, _say)
        _show(parts)
        if wait is not None:
            addresses = [part.address for part in parts.values()]
            click.echo(f"ready actors={','.join(addresses[1:])} learner={addresses[0]}")
    return None


@command.command(short_help="Change the number of actors.")
@click.argument("actors", type=click.IntRange(min=0))
@_file
def scale(actors: int, file: Path | None) -> None:
    """Change the number of actors; those that are too many are drained.

    An actor without a node waits for one; on a cloud, Ray starts one.
    """
    with _told():
        if file is not None:
            return Cluster.of(file, _say).on_head("scale", str(actors))
        from turnwise_deploy import placement

        with placement.connected():
            placement.scale(actors, _say)
    return None


@command.command(short_help="Have actors end once the learner has all their facts.")
@_file
@click.option("--actor", "names", multiple=True, help="Only this one, as status names it; may be repeated.")
@click.option(
    "--timeout", type=float, default=300.0, show_default=True, help="Seconds for the spools to empty."
)
def drain(file: Path | None, names: tuple[str, ...], timeout: float) -> int:
    """Have actors end once the learner has all their facts; exit code 75 if some are left in a spool.

    `turnwise cluster scale` with the same number starts them again.
    """
    with _told():
        if file is not None:
            options = [word for name in names for word in ("--actor", name)]
            Cluster.of(file, _say).on_head("drain", *options, "--timeout", f"{timeout:g}")
            return 0
        from turnwise_deploy import placement

        with placement.connected():
            return 0 if placement.drain(names, timeout, _say) else 75


@command.command(short_help="Stop everything, on every node.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def down(file: Path) -> None:
    """Drain the actors, have the learner save, then stop Ray on every node; data folders stay.

    Machines of a cloud are given back.
    """
    with _told():
        Cluster.of(file, _say).down()


@command.command(hidden=True)
def stop() -> None:
    """Drain the actors and end the learner; Ray goes on. Called on the head by `down`."""
    with _told():
        from turnwise_deploy import placement

        with placement.connected():
            placement.stop(_say)


@command.command("stop-here", hidden=True)
@_DATA
def stop_here(data: Path) -> int:
    """End what was placed on this node, whether or not Ray is there. Called on each node by `down`."""
    with _told():
        late = [post.name for post in posts(data.expanduser()) if not post.stop(_STOP_S)]
        for name in late:
            _say(f"{name} has not ended within {_STOP_S:.0f} s")
        return 1 if late else 0


def _show(parts: "dict[str, Placed]") -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("part", "address", "process", "starts", "last end"):
        table.add_column(heading)
    for name, part in parts.items():
        if part.state is None:
            why = "none" if part.node else "waits for a node"
            table.add_row(name, part.address or "-", why, "", "")
            continue
        ended = "" if part.state.exit_code is None else str(part.state.exit_code)
        table.add_row(name, part.address, str(part.pid or "none"), str(part.state.starts), ended)
    Console(soft_wrap=True).print(table)


@contextmanager
def _told() -> Iterator[None]:
    """What is wrong comes as one line instead of a traceback."""
    try:
        yield
    except (AccessError, ClusterError, ClusterFileError, PostError) as error:
        raise click.ClickException(str(error)) from error


def _say(line: str) -> None:
    click.echo(f"turnwise: {line}", err=True)
    sys.stderr.flush()
