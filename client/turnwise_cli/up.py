"""`turnwise up`: a learner and actors on this machine, until Ctrl-C."""

import logging
import signal
import sys
from pathlib import Path

import click

from turnwise_actor.access.credentials import CREDENTIALS
from turnwise_actor.access.server_access import AccessError, ServerAccess
from turnwise_actor.signals import on_signals
from turnwise_deploy.data_folder import DataFolderInUseError
from turnwise_deploy.local import DeploymentError, LocalConfig, LocalDeployment

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(short_help="Run a learner and actors on this machine.")
@click.option("--domain", type=click.Path(path_type=Path), required=True, help="The domain file.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=LocalConfig.data,
    show_default=True,
    help="Folder of journal, checkpoints, policies, logs; made if missing.",
)
@click.option("--actors", type=int, default=LocalConfig.actors, show_default=True, help="Actor processes.")
@click.option("--host", default=LocalConfig.host, show_default=True, help="Address to listen at.")
@click.option("--tls-cert", type=_FILE, help="TLS: the servers' certificate chain, PEM.")
@click.option("--tls-key", type=_FILE, help="Its private key, PEM.")
@click.option("--tls-client-ca", type=_FILE, help="Mutual TLS: clients need a certificate of this CA, PEM.")
@click.option(
    "--credentials",
    type=_FILE,
    help=f"Who may call what, see `turnwise credential`; default: {CREDENTIALS} in --data, if it exists.",
)
@click.option("--insecure", is_flag=True, help="Listen at any --host, in plain text, for anybody.")
@click.option(
    "--port",
    type=int,
    default=LocalConfig.port,
    show_default=True,
    help="Port of the first actor; the next ones follow. 0: free ones.",
)
@click.option(
    "--learner-port",
    type=int,
    default=LocalConfig.learner_port,
    show_default=True,
    help="Port of the learner. 0: a free one.",
)
@click.option(
    "--metrics-port",
    type=int,
    help="Serve metrics to Prometheus over plain HTTP: the learner at this port (such as 9464), the actors "
    "at the next ones. 0: free ones.",
)
@click.option(
    "--learner-arg",
    "learner_arguments",
    multiple=True,
    help="One more argument of `turnwise learner`; may be repeated.",
)
@click.option(
    "--actor-arg",
    "actor_arguments",
    multiple=True,
    help="One more argument of `turnwise actor`; may be repeated.",
)
def command(
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    credentials: Path | None,
    insecure: bool,
    **settings: object,
) -> int:
    """Run a learner and actors on this machine.

    Prints one line, `ready actors=HOST:PORT,... learner=HOST:PORT`, when the bot answers; all else goes
    to the standard error. Ctrl-C or SIGTERM lets the actors finish, saves a checkpoint and ends; the next
    `up` with the same data folder goes on from there. A second Ctrl-C ends everything at once.
    SIGUSR1 restarts the actors one after the other, which nobody notices where there are two or more.
    With --metrics-port the line goes on with ` metrics=HOST:PORT,...`: the learner's, then the actors'.

    On loopback nothing more is needed. Any other --host wants TLS, and mutual TLS or credentials.
    """
    logging.basicConfig(level=logging.WARNING, format="turnwise: %(message)s")
    try:
        access = ServerAccess(tls_cert, tls_key, tls_client_ca, credentials, insecure)
        config = LocalConfig(access=access, **settings)  # type: ignore[arg-type]
        return _serve(LocalDeployment(config, say=_say))
    except (AccessError, DeploymentError, DataFolderInUseError) as error:
        raise click.ClickException(str(error)) from error


def _serve(deployment: LocalDeployment) -> int:
    signals = 0

    def on_signal(number: int) -> None:
        nonlocal signals
        if number == signal.SIGUSR1:
            return deployment.request_restart()
        signals += 1
        if signals == 1:
            deployment.request_stop()
        else:
            deployment.kill()

    with on_signals((*_SIGNALS, signal.SIGUSR1), on_signal), deployment:
        if deployment.ready:
            ready = f"ready actors={','.join(deployment.actors)} learner={deployment.learner}"
            if deployment.metrics:
                ready += f" metrics={','.join(deployment.metrics.values())}"
            click.echo(ready)
            sys.stdout.flush()
            if sys.stderr.isatty():
                _say(f"talk to it: turnwise chat {' '.join(deployment.actors)}; Ctrl-C stops it")
        deployment.wait()
    end = "killed" if signals > 1 else "stopped"
    _say(f"{end}; the data is in {deployment.folder.path}")
    return 1 if signals > 1 else 0


def _say(line: str) -> None:
    click.echo(f"turnwise: {line}", err=True)
