"""`python -m turnwise_learner`: the learner's service, which starts and keeps the trainer."""

import argparse
import logging
import logging.handlers
import os
import sys
from dataclasses import replace
from pathlib import Path

from turnwise_actor import event_loop
from turnwise_actor.access import server_access
from turnwise_actor.access.credentials import CREDENTIALS, CredentialFileError
from turnwise_actor.access.server_access import AccessError, ServerAccess
from turnwise_actor.policy import DomainError
from turnwise_learner.journal import JournalError
from turnwise_learner.service import ServiceConfig, serve
from turnwise_learner.store import StoreConfig, StoreError, StoreRefusedError

_TRAINER_OPTIONS = {
    "checkpoint_every_s": "seconds between two checkpoints",
    "checkpoint_every_turns": "turns between two checkpoints",
    "keep_checkpoints": "how many of the newest checkpoints are kept",
}
_LEVELS = ("debug", "info", "warning", "error")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m turnwise_learner", description=__doc__)
    parser.add_argument("--domain", type=Path, required=True, metavar="FILE", help="the domain file")
    parser.add_argument("--data", type=Path, default=Path("turnwise-data"), metavar="FOLDER")
    parser.add_argument("--listen", default=ServiceConfig.listen, metavar="HOST:PORT", help="port 0: any")
    parser.add_argument(
        "--local-listen",
        default=ServiceConfig.local_listen,
        metavar="HOST:PORT",
        help="loopback, for the trainer and other processes of this machine",
    )
    parser.add_argument("--metrics-listen", metavar="HOST:PORT", help="metrics for Prometheus, plain HTTP")
    parser.add_argument("--no-trainer", action="store_true", help="start no trainer; one may attach")
    for name, text in _TRAINER_OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=f"handed to the trainer: {text}")
    parser.add_argument("--no-tensorboard", action="store_true", help="the trainer writes no event files")
    parser.add_argument(
        "--checkpoint-store",
        metavar="URI",
        help="a folder, or s3://, gs://, file://: where checkpoints and the journal are copied to, and "
        "fetched from if the data folder has no journal",
    )
    parser.add_argument(
        "--ship-journal-every",
        type=float,
        default=StoreConfig.every_s,
        metavar="S",
        help="seconds between two copies of what is new in the journal (default: %(default)g)",
    )
    parser.add_argument("--log-level", choices=_LEVELS, default="info")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="instead of standard error")
    server_access.add_options(parser)
    return parser


def _config(arguments: argparse.Namespace) -> ServiceConfig:
    options: list[str] = []
    for name in _TRAINER_OPTIONS:
        value = getattr(arguments, name)
        if value is not None:
            options += [f"--{name.replace('_', '-')}", value]
    if arguments.no_tensorboard:
        options.append("--no-tensorboard")
    return ServiceConfig(
        domain=arguments.domain.resolve(),
        data=arguments.data.resolve(),
        listen=arguments.listen,
        local_listen=arguments.local_listen,
        access=_access(arguments),
        metrics_listen=arguments.metrics_listen,
        start_trainer=not arguments.no_trainer,
        trainer_options=tuple(options),
        store=_store(arguments),
    )


def _store(arguments: argparse.Namespace) -> StoreConfig | None:
    """As told; in the store as many checkpoints are kept as in the data folder."""
    if not arguments.checkpoint_store:
        return None
    keep = int(arguments.keep_checkpoints or StoreConfig.keep_checkpoints)
    return StoreConfig(arguments.checkpoint_store, arguments.ship_journal_every, keep)


def _access(arguments: argparse.Namespace) -> ServerAccess:
    """As told; the data folder's own credential file counts where it exists and no other is named."""
    access = server_access.from_options(arguments)
    own = arguments.data.resolve() / CREDENTIALS
    return replace(access, credentials=own) if access.credentials is None and own.exists() else access


def _configure_logging(level: str, file: Path | None) -> None:
    handler = logging.StreamHandler() if file is None else logging.handlers.WatchedFileHandler(file)
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[handler],
    )


def main() -> None:
    """Runs until SIGTERM or SIGINT: exit code 0. 78: a wrong domain or setting; 1: it cannot start."""
    arguments = _parser().parse_args()
    try:
        _configure_logging(arguments.log_level, arguments.log_file)
        left_behind = event_loop.run(serve(_config(arguments)))
    except (DomainError, AccessError, CredentialFileError, StoreRefusedError) as error:
        # Starting again is of no use: the supervisor knows this code.
        print(f"turnwise_learner: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(os.EX_CONFIG)
    except (JournalError, StoreError, OSError, ValueError) as error:
        sys.exit(f"turnwise_learner: {error}")
    if left_behind:
        logging.shutdown()
        os._exit(os.EX_OK)


if __name__ == "__main__":
    main()
