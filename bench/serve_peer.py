"""The peer that turns are held against: the same policy behind Ray Serve's gRPC ingress.

It answers the calls of the product's own `Dialogue` service with messages of the same sizes, but keeps no
journal and opens no token: it hands back the one it was given. `Act` is a call, `Converse` a stream.

As a script it runs a Ray of its own with one replica, prints a `Peer` as a line of JSON, and ends with its
standard input.
"""

import argparse
import json
import logging
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from processes import descendants
from turnwise.v1 import dialogue_pb2 as pb
from turnwise_actor.policy import NetworkSpec, Policy
from turnwise_actor.policy.spec import LAYER_NORM_EPS

Float32 = npt.NDArray[np.float32]

_BEST = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""Environment of the fastest Serve: direct ingress, user code on the server's own loop, a frozen collector.
The default one is without."""
_SERVICE = "turnwise.v1.dialogue_pb2_grpc.add_DialogueServicer_to_server"
_REPLICA, _PROXY = "ray::ServeRepl", "ray::ProxyActor"
"""How Ray names these processes; the kernel keeps 15 letters."""
_NOT_INSTALLED = 3


@dataclass(frozen=True)
class Peer:
    """Where Serve listens, and the processes that answering costs."""

    address: str
    replica: int
    proxies: tuple[int, ...] = ()

    @property
    def pids(self) -> list[int]:
        """All that work for a turn."""
        return [self.replica, *self.proxies]


@contextmanager
def serve_peer(policy: Path, best: bool) -> Iterator[Peer | None]:
    """A Serve in its best or its default configuration; None: it is not installed."""
    command = [sys.executable, str(Path(__file__)), str(policy), *(["--best"] if best else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line and process.wait() != _NOT_INSTALLED:
                raise OSError(f"Ray Serve ended with exit code {process.returncode}")
            if line:
                told = json.loads(line)
                yield Peer(told["address"], told["replica"], tuple(told["proxies"]))
            else:
                yield None
        finally:
            process.stdin.close()


# The deployment


@dataclass(frozen=True)
class Lean:
    """The policy's forward pass for one row.

    Here every request comes alone, and a row takes less than half the time of the actor's blocks of eight,
    which are for batches.
    """

    spec: NetworkSpec
    parameters: Mapping[str, Float32]

    def q_values(self, x: Float32) -> Float32:
        """<float32>[D] to <float32>[A]."""
        of = self.parameters
        for i in range(len(self.spec.hidden)):
            x = of[f"hidden.{i}.weight"] @ x
            x += of[f"hidden.{i}.bias"]
            if self.spec.layer_norm:
                x -= x.mean()
                x /= np.sqrt(x @ x / np.float32(len(x)) + np.float32(LAYER_NORM_EPS))
                x *= of[f"norm.{i}.weight"]
                x += of[f"norm.{i}.bias"]
            np.maximum(x, np.float32(0.0), out=x)
        q: Float32 = of["head.weight"] @ x
        q += of["head.bias"]
        return q


def probabilities(q: Float32, allowed: npt.NDArray[np.bool_], epsilon: float) -> Float32:
    """(1 - epsilon) greedy + epsilon uniform(allowed), <float32>[A]."""
    values = np.where(allowed, q, -np.inf)
    best = values == values.max()
    p: Float32 = best * np.float32((1 - epsilon) / np.count_nonzero(best))
    if epsilon:
        p += allowed * np.float32(epsilon / np.count_nonzero(allowed))
    return p


class Bot:
    """Methods are named as the calls of the service: so Serve finds them."""

    def __init__(self, data: bytes) -> None:
        policy = Policy.from_bytes(data)
        self._lean = Lean(policy.spec, policy.parameters)
        self._all = np.ones(policy.spec.actions, bool)
        self._actions = [f"action_{i}" for i in range(policy.spec.actions)]
        self._index = {name: i for i, name in enumerate(self._actions)}
        self._epsilon = policy.exploration.teach_epsilon
        self._fingerprint = policy.fingerprint

    async def Act(self, request: pb.ActRequest) -> pb.Turn:
        """A turn a call."""
        return self._turn(request)

    async def Converse(self, requests: AsyncIterator[pb.ConverseRequest]) -> AsyncIterator[pb.ConverseReply]:
        """A turn a message."""
        async for request in requests:
            yield pb.ConverseReply(correlation_id=request.correlation_id, turn=self._turn(request.act))

    def _turn(self, request: pb.ActRequest) -> pb.Turn:
        q = self._lean.q_values(np.frombuffer(request.observation.features, "<f4"))
        allowed = self._all
        if request.allowed:
            allowed = np.zeros_like(allowed)
            allowed[[self._index[name] for name in request.allowed]] = True
        p = probabilities(q, allowed, self._epsilon)
        sums = p.cumsum()
        action = min(int(np.searchsorted(sums, random.random() * sums[-1], "right")), len(p) - 1)
        if not allowed.all():
            q[~allowed] = np.nan
        return pb.Turn(
            dialogue_id="bench-0123456789abcdef",
            index=1000,
            decision_id="0123456789abcdef0123456789abcdef",
            action=self._actions[action],
            say=f"Answer {action}.",
            probability=p[action],
            q_values=q.tobytes(),
            policy_version=pb.PolicyVersion(generation=1, number=1000),
            learned_through=100_000,
            recorded=True,
            token=request.token,
            domain_fingerprint=self._fingerprint,
        )


# The process that runs it


def run(policy: Path, best: bool) -> int:
    """Serves until the standard input ends."""
    try:
        import ray
        from ray import serve
    except ImportError as error:
        print(error, file=sys.stderr)
        return _NOT_INSTALLED
    http, grpc = _free_ports(2)
    with tempfile.TemporaryDirectory(prefix="serve-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=100 * 1024 * 1024,
            _temp_dir=folder,
        )
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": "127.0.0.1", "port": http},
                grpc_options={"port": grpc, "grpc_servicer_functions": [_SERVICE]},
                logging_config={"enable_access_log": not best},
            )
            # As many at once as an actor takes; by default it is five, and no more streams than that.
            options: dict[str, Any] = {"max_ongoing_requests": 256, "ray_actor_options": {"num_cpus": 0}}
            if best:
                options["logging_config"] = {"enable_access_log": False}
            serve.run(serve.deployment(**options)(Bot).bind(policy.read_bytes()))
            print(json.dumps(asdict(_peer(grpc, best))), flush=True)
            sys.stdin.read()
        finally:
            ray.shutdown()
    return 0


def _peer(port: int, best: bool) -> Peer:
    mine = list(descendants(os.getpid()))
    replica = next(pid for pid, name in mine if name.startswith(_REPLICA))
    if best:  # the proxy is there, and idle
        return Peer(f"127.0.0.1:{os.environ['RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT']}", replica)
    return Peer(f"127.0.0.1:{port}", replica, tuple(pid for pid, name in mine if name.startswith(_PROXY)))


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives to clients, above those that Ray gives to its workers."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(21_000, 30_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def _prepare(best: bool) -> None:
    """Ray reads its settings from the environment, when it is imported and in processes of its own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as an actor has it
    if best:
        http, grpc = _free_ports(2)
        os.environ.update(_BEST)
        for kind, port in (("HTTP", http), ("GRPC", grpc)):
            os.environ[f"RAY_SERVE_DIRECT_INGRESS_MIN_{kind}_PORT"] = str(port)
            os.environ[f"RAY_SERVE_DIRECT_INGRESS_MAX_{kind}_PORT"] = str(port + 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("policy", type=Path, help="a policy file")
    parser.add_argument("--best", action="store_true", help="the fastest configuration, not the default one")
    options = parser.parse_args()
    _prepare(options.best)
    sys.exit(run(options.policy, options.best))
