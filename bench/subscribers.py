"""Subscribers of the broadcast, one process of them: the actor's own watch of policies, and its TCP peer.

Says on its standard output when each was done: `swap VERSION NS` once a policy is in force, `tcp NS` once as
many bytes as were announced are there, NS being the machine's monotonic clock. Ends with its standard input.
"""

import argparse
import asyncio
import socket
import sys
import threading
import time
from pathlib import Path

from turnwise_actor.access.client_access import ClientAccess, Link
from turnwise_actor.policy import Domain, Policy
from turnwise_actor.weights import Policies, PolicyWatch

LENGTH_BYTES = 8


def _said(policy: Policy) -> None:
    _say(f"swap {policy.version} {time.monotonic_ns()}")


_lock = threading.Lock()


def _say(words: str) -> None:
    with _lock:
        sys.stdout.write(words + "\n")
        sys.stdout.flush()


def receive(port: int) -> None:
    """Messages of one connection, each its length and so many bytes, into one buffer, until it ends."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        buffer = bytearray()
        while len(head := connection.recv(LENGTH_BYTES, socket.MSG_WAITALL)) == LENGTH_BYTES:
            missing = int.from_bytes(head, "little")
            if len(buffer) < missing:
                buffer = bytearray(missing)
            view = memoryview(buffer)[:missing]
            while len(view):
                view = view[connection.recv_into(view) :]
            _say(f"tcp {time.monotonic_ns()}")


async def watch(domain: Domain, learner: str, count: int, map_file: bool) -> None:
    """So many subscribers of the learner, each on a connection of its own, until the standard input ends."""
    watches = []
    for number in range(count):
        policies = Policies(domain)
        policies.on_change(_said)
        link = Link(learner, ClientAccess(), [("grpc.use_local_subchannel_pool", 1)])
        watching = PolicyWatch(link, policies, domain.fingerprint, f"subscriber {number}", map_file)
        watches.append(asyncio.create_task(watching.run()))
    await asyncio.to_thread(sys.stdin.read)
    for each in watches:
        each.cancel()
    await asyncio.gather(*watches, return_exceptions=True)


def main() -> None:
    """Subscribes and connects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domain", type=Path, required=True)
    parser.add_argument("--learner", required=True)
    parser.add_argument("--tcp", type=int, required=True, help="port of the peer")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--sent", action="store_true", help="files are sent, not mapped")
    options = parser.parse_args()
    for _ in range(options.count):
        threading.Thread(target=receive, args=(options.tcp,), daemon=True).start()
    asyncio.run(watch(Domain.load(options.domain), options.learner, options.count, not options.sent))


if __name__ == "__main__":
    main()
