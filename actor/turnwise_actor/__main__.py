"""`python -m turnwise_actor`: one actor process.

Exit status: 0 after a clean shutdown, 75 when facts are left in the spool, 78 when a file it needs is
wrong, 69 when the address cannot be listened on, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from turnwise_actor import event_loop
from turnwise_actor.access import server_access
from turnwise_actor.access.client_access import ClientAccess
from turnwise_actor.access.credentials import CredentialFileError
from turnwise_actor.access.server_access import AccessError
from turnwise_actor.config import ActorConfig
from turnwise_actor.policy import DomainError, PolicyFileError
from turnwise_actor.server import ActorServer, ListenError
from turnwise_actor.tokens import KeyFileError
from turnwise_actor.weights import UnfitPolicyError

logger = logging.getLogger("turnwise_actor")

_M_ARENA_MAX = -8
"""Of glibc's mallopt."""
_TRIM_EVERY_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs an actor until SIGTERM or SIGINT; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        config = _config(options)
    except ValueError as error:
        parser.error(str(error))
    _give_memory_back()
    try:
        actor = ActorServer(config)
    except (
        *(DomainError, KeyFileError, PolicyFileError, UnfitPolicyError),
        *(AccessError, CredentialFileError, OSError),
    ) as error:
        logger.critical("%s", error)
        return os.EX_CONFIG
    try:
        return event_loop.run(_serve(actor))
    except AccessError as error:
        logger.critical("%s", error)
        return os.EX_CONFIG
    except ListenError as error:
        logger.critical("%s", error)
        return os.EX_UNAVAILABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="turnwise_actor", description="Answers dialogue turns.")
    add = parser.add_argument
    add("--domain", type=Path, required=True, metavar="FILE", help="the domain, YAML")
    add("--learner", required=True, metavar="HOST:PORT", help="where facts go and policies come from")
    add("--listen", required=True, metavar="HOST:PORT", help="port 0: the system chooses")
    add("--keys", type=Path, required=True, metavar="FILE", help="token keys, shared by the actors")
    add("--spool", type=Path, required=True, metavar="DIR", help="shared by the actors of this machine")
    add("--policy", type=Path, metavar="PATH", help="a policy file, or a folder whose newest is served")
    add("--address-file", type=Path, metavar="FILE", help="written with host:port once it listens")
    add("--metrics-listen", metavar="HOST:PORT", help="metrics for Prometheus, over plain HTTP")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    server_access.add_options(parser)
    add = parser.add_argument_group("how it connects to the learner").add_argument
    add("--learner-ca", type=Path, metavar="FILE", help="TLS: the CA of the learner's certificate, PEM")
    add("--learner-cert", type=Path, metavar="FILE", help="mutual TLS: this actor's own certificate, PEM")
    add("--learner-key", type=Path, metavar="FILE", help="its private key, PEM")
    add("--learner-name", default="", metavar="NAME", help="TLS: what its certificate is made out to")
    add("--learner-credentials", type=Path, metavar="FILE", help="holds this actor's bearer token")
    return parser


def _config(options: argparse.Namespace) -> ActorConfig:
    return ActorConfig(
        domain_file=options.domain,
        learner_address=options.learner,
        listen_address=options.listen,
        key_file=options.keys,
        spool_folder=options.spool,
        policy_path=options.policy,
        address_file=options.address_file,
        metrics_listen=options.metrics_listen,
        access=server_access.from_options(options),
        learner_access=ClientAccess(
            ca=options.learner_ca,
            certificate=options.learner_cert,
            key=options.learner_key,
            token_file=options.learner_credentials,
            server_name=options.learner_name,
        ),
    )


def _spare_the_collector() -> None:
    """Cyclic garbage is rare here, and looking for it at Python's pace took a sixth of a busy actor's time.

    What the start has made stays for good and is not looked through again; the rest a dozen times more
    rarely: at 70,000 objects it holds 8 MB more, and no less of the processor. Turns are freed by their
    reference counts.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _give_memory_back() -> None:
    """Has the C library keep less than it would.

    GRPC's threads come and go, and it keeps pieces of memory for each: 7 MB of 90. What is free between
    pieces in use it keeps too, after a busy minute as much again; looking for it takes half a millisecond.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_M_ARENA_MAX, 2)
        trim = library.malloc_trim
    except (OSError, AttributeError):  # another C library
        return

    def trim_now_and_then() -> None:
        while True:
            time.sleep(_TRIM_EVERY_S)
            trim(0)

    threading.Thread(target=trim_now_and_then, name="malloc-trim", daemon=True).start()


async def _serve(actor: ActorServer) -> int:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await actor.start()
    _spare_the_collector()
    await stopping.wait()
    return os.EX_OK if await actor.stop() else os.EX_TEMPFAIL


if __name__ == "__main__":
    sys.exit(main())
