"""How soon a new policy is in force at the last of many actors, against the bytes alone over raw TCP.

The learner's service is the product's; this program takes the trainer's place: it writes a policy's file and
tells of it, as the trainer does. Its subscribers, in eight processes, are the actors' own watch of policies,
each with a connection and policies of its own. The clock runs from the parameters in the trainer's memory to
the last swap: network built, every next turn answered from it. The peer sends as many bytes from memory, a
thread a connection, into a buffer that is there already; it builds nothing and checks nothing.

`--sent`: the subscribers are sent the files, as actors on other machines are, instead of mapping them.
`--short`: about a minute.
"""

import argparse
import contextlib
import queue
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from report import Report, say, spread
from subscribers import LENGTH_BYTES
from turns import write_domain
from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.access.client_access import LOCAL_TOKEN, ClientAccess
from turnwise_actor.policy import Domain, Exploration, Policy, default_spec, initial_policy
from turnwise_learner.journal import JournalReader, journal_path
from turnwise_learner.trainer.service_link import ServiceLink, hello
from turnwise_learner.trainer.versions import VersionFolder

GOALS = {"big8_vs_tcp": 2.0, "small64_vs_tcp": 3.0}
PROCESSES = 8
BIG, SMALL = (3400, 3400), (272, 272)
"""Hidden layers that make 50 MB and 0.5 MB."""
START_S, SWAP_S = 120.0, 60.0
_POLL_S = 0.05


class CannotRunError(RuntimeError):
    """A part did not start, or a subscriber was never done."""


@dataclass
class Subscribers:
    """Processes of subscribers, and when each was done with what."""

    count: int
    """In all."""
    sent: bool
    """Files are sent to them, not mapped."""
    times: "queue.SimpleQueue[tuple[str, int]]" = field(default_factory=queue.SimpleQueue)
    """What was done, and the monotonic clock in ns."""

    @contextlib.contextmanager
    def running(self, domain: Path, learner: str, tcp: int) -> Iterator[None]:
        """Started, and ended afterwards."""
        script = Path(__file__).with_name("subscribers.py")
        command = [sys.executable, str(script), "--domain", str(domain), "--learner", learner]
        command += ["--tcp", str(tcp), "--count", str(self.count // PROCESSES)]
        command += ["--sent"] if self.sent else []
        with contextlib.ExitStack() as stack:
            for _ in range(PROCESSES):
                process = stack.enter_context(
                    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                )
                threading.Thread(target=self._listen, args=(process,), daemon=True).start()
                assert process.stdin is not None
                stack.callback(process.stdin.close)
            yield

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            what, _, at = line.strip().rpartition(" ")
            self.times.put((what, int(at)))

    def last(self, what: str) -> int:
        """When the last of all subscribers was done with it, in ns.

        Raises:
            CannotRunError: One was not done in time.
        """
        done, latest, deadline = 0, 0, time.monotonic() + SWAP_S
        while done < self.count:
            try:
                told, at = self.times.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                raise CannotRunError(f"{done} of {self.count} subscribers have met {what}") from None
            if told == what:
                done, latest = done + 1, max(latest, at)
        return latest


@dataclass
class Trainer:
    """As much of a trainer as publishing needs."""

    link: ServiceLink
    folder: VersionFolder

    @classmethod
    def attached(cls, data: Path, service: str, fingerprint: str) -> "Trainer":
        """To the service of a data folder."""
        with contextlib.closing(JournalReader(journal_path(data))) as reader:
            greeting = hello(reader.journal_id, resumed=False)
        access = ClientAccess(token_file=data / LOCAL_TOKEN)
        link = ServiceLink(service, access, greeting, threading.Event())
        generation = link.wait_for_welcome(START_S).generation
        return cls(link, VersionFolder(data / "policies", fingerprint, generation))

    def publish(self, policy: Policy) -> str:
        """Writes the parameters as the next version and tells of it."""
        algorithm = SimpleNamespace(
            pacer=SimpleNamespace(learned_through=0),
            module=SimpleNamespace(spec=policy.spec, policy_parameters=lambda: policy.parameters),
            learner=SimpleNamespace(updates=0),
        )
        path = self.folder.publish(algorithm, Exploration())
        version = self.folder.version
        wire = dialogue_pb2.PolicyVersion(generation=version.generation, number=version.number)
        published = training_pb2.PolicyPublished(version=wire, file=path.name)
        self.link.send(training_pb2.TrainerMessage(published=published))
        return str(version)


@contextlib.contextmanager
def service(domain: Path, data: Path) -> Iterator[tuple[str, str]]:
    """The product's, without a trainer of its own; its address, and that of its local door."""
    command = [sys.executable, "-m", "turnwise_learner", "--domain", str(domain), "--data", str(data)]
    command += ["--listen", "127.0.0.1:0", "--no-trainer", "--log-level", "error"]
    with subprocess.Popen(command) as process:
        try:
            yield _written(process, data / "learner.address"), _written(process, data / "learner.local")
        finally:
            process.terminate()


def _written(process: "subprocess.Popen[bytes]", file: Path) -> str:
    deadline = time.monotonic() + START_S
    while not file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise CannotRunError("the learner's service has not started")
        time.sleep(_POLL_S)
    return file.read_text()


class Peer:
    """Sends bytes to everybody who is connected."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=count)
        self._connections: list[socket.socket] = []
        self._senders = ThreadPoolExecutor(count)

    @property
    def port(self) -> int:
        """Where to connect."""
        return int(self._listener.getsockname()[1])

    def accept(self) -> None:
        """Returns once all are connected."""
        self._listener.settimeout(START_S)
        while len(self._connections) < self._count:
            self._connections.append(self._listener.accept()[0])

    def send(self, data: bytes) -> None:
        """To all at once; returns at once."""
        head = len(data).to_bytes(LENGTH_BYTES, "little")
        for connection in self._connections:
            self._senders.submit(_send, connection, head, data)

    def close(self) -> None:
        """Ends the connections."""
        for each in (*self._connections, self._listener):
            each.close()
        self._senders.shutdown(cancel_futures=True)


def _send(connection: socket.socket, head: bytes, data: bytes) -> None:
    connection.sendall(head)
    connection.sendall(data)


@dataclass
class Times:
    """Milliseconds to the last subscriber, round by round."""

    file_bytes: int
    swap: list[float] = field(default_factory=list)
    write: list[float] = field(default_factory=list)
    """Of those until the file was written and told of."""
    tcp: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median over the rounds."""
        return statistics.median(ours / least for ours, least in zip(self.swap, self.tcp, strict=True))


def measure(folder: Path, hidden: tuple[int, int], count: int, rounds: int, sent: bool) -> Times:
    """Rounds of one size and number of subscribers; one more before them, which is not counted."""
    domain_file, data = write_domain(folder), folder / f"data-{count}"
    domain = Domain.load(domain_file)
    policy = initial_policy(domain, replace(default_spec(domain), hidden=hidden))
    whole = policy.to_bytes()
    times, subscribers, peer = Times(len(whole)), Subscribers(count, sent), Peer(count)
    with contextlib.ExitStack() as stack:
        stack.callback(peer.close)
        address, door = stack.enter_context(service(domain_file, data))
        stack.enter_context(subscribers.running(domain_file, address, peer.port))
        peer.accept()
        trainer = Trainer.attached(data, door, domain.fingerprint)
        stack.callback(trainer.link.close)
        for number in range(rounds + 1):
            began = time.monotonic_ns()
            version = trainer.publish(policy)
            written = time.monotonic_ns()
            swapped = subscribers.last(f"swap {version}")
            sent = time.monotonic_ns()
            peer.send(whole)
            received = subscribers.last("tcp")
            if number:
                times.swap.append((swapped - began) / 1e6)
                times.write.append((written - began) / 1e6)
                times.tcp.append((received - sent) / 1e6)
                say(
                    f"{len(whole) / 1e6:.1f} MB to {count}: {times.swap[-1]:.1f} ms "
                    f"({times.write[-1]:.1f} to write), raw TCP {times.tcp[-1]:.1f} ms"
                )
    return times


def main() -> int:
    """0 when it ran, whatever the figures; 1 when it could not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--short", action="store_true", help="about a minute")
    parser.add_argument("--sent", action="store_true", help="as to actors on other machines")
    options = parser.parse_args()
    rounds = 7 if options.short else 25
    with tempfile.TemporaryDirectory(prefix="turnwise-broadcast-") as name:
        try:
            small = measure(Path(name), SMALL, 64, rounds, options.sent)
            big = measure(Path(name), BIG, 8, rounds, options.sent)
        except (CannotRunError, OSError, TimeoutError) as error:
            say(f"broadcast could not run: {error}")
            return 1
    ratios = {"big8_vs_tcp": big.ratio, "small64_vs_tcp": small.ratio}
    figures = {
        key: {
            "file_bytes": times.file_bytes,
            "swap_ms": spread(times.swap),
            "of_that_write_ms": spread(times.write),
            "tcp_ms": spread(times.tcp),
        }
        for key, times in (("big8", big), ("small64", small))
    }
    ok = all(ratios[key] <= goal for key, goal in GOALS.items())
    print(Report("broadcast", ratios, GOALS, {"sent": options.sent, **figures}, ok).line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
