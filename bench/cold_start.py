"""How soon a fresh actor answers, and what it holds after its first turns."""

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from loads import CONNECTIONS, SESSIONS, begin, observation, stream_turns
from processes import holding
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1.dialogue_pb2_grpc import DialogueStub
from turnwise_deploy.local import DeploymentError, LocalDeployment

COLD_STARTS = 5
FIRST_TURNS = 10_000
NOBODY = "127.0.0.1:1"
"""Where no learner listens."""
_PATIENCE_S = 60.0
_LOOK_EVERY_S = 0.002


def cold_start_figures(up: LocalDeployment, domain: Path, policy: Path, folder: Path) -> dict[str, float]:
    """Medians. The first turn is one of a policy file, with the learner away."""
    return {
        "import_turnwise_s": _seconds_of("import turnwise") - _seconds_of("pass"),
        "first_turn_s": statistics.median(
            first_turn_s(up, domain, policy, folder / f"first-{i}") for i in range(COLD_STARTS)
        ),
        f"rss_after_{FIRST_TURNS}_turns_mb": rss_mb(up, domain, folder / "rss"),
    }


def first_turn_s(up: LocalDeployment, domain: Path, policy: Path, folder: Path) -> float:
    """From the start of the process to its first answer."""
    began = time.monotonic()
    with (
        fresh_actor(up, domain, NOBODY, folder, "--policy", str(policy)) as (address, _),
        grpc.insecure_channel(address) as channel,
    ):
        _first_turn(DialogueStub(channel))
        return time.monotonic() - began


def rss_mb(up: LocalDeployment, domain: Path, folder: Path) -> float:
    """Of a fresh actor that has answered its first turns, with the learner there."""
    with fresh_actor(up, domain, up.learner, folder) as (address, pid):
        with grpc.insecure_channel(address) as channel:
            _first_turn(DialogueStub(channel))
        asyncio.run(_talk(address))
        seen = holding(pid, 0.0)
    if seen is None:
        raise DeploymentError("the fresh actor is gone")
    return seen.rss_bytes / 1e6


async def _talk(address: str) -> None:
    sessions = await begin(address, CONNECTIONS * SESSIONS)
    await stream_turns((address,), sessions, lambda turns: turns >= FIRST_TURNS)


def _first_turn(stub: DialogueStub) -> None:
    """Asks again until there is an answer: an actor without a policy yet says so."""
    deadline = time.monotonic() + _PATIENCE_S
    name = f"first-{os.urandom(8).hex()}"
    while True:
        try:
            begun = stub.StartDialogue(pb.StartDialogueRequest(dialogue_id=name), timeout=_PATIENCE_S)
            request = pb.ActRequest(token=begun.token, observation=observation(0), request_id="r1")
            stub.Act(request, timeout=_PATIENCE_S)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise DeploymentError(f"a fresh actor does not answer: {error}") from error
            time.sleep(_LOOK_EVERY_S)
        else:
            return


@contextmanager
def fresh_actor(
    up: LocalDeployment, domain: Path, learner: str, folder: Path, *further: str
) -> Iterator[tuple[str, int]]:
    """Its address and pid, as soon as it listens; it seals with the deployment's keys."""
    folder.mkdir()
    at = folder / "address"
    command = [sys.executable, "-m", "turnwise_actor", "--domain", str(domain), "--learner", learner]
    command += ["--listen", "127.0.0.1:0", "--keys", str(up.folder.keys), "--spool", str(folder / "spool")]
    command += ["--address-file", str(at), "--log-level", "error", *further]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + _PATIENCE_S
            while not (address := _read(at)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise DeploymentError(f"a fresh actor does not listen (exit code {process.returncode})")
                time.sleep(_LOOK_EVERY_S)
            yield address, process.pid
        finally:
            process.terminate()


def _read(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text().strip()
    return ""


def _seconds_of(code: str) -> float:
    """Of a fresh interpreter that runs this; median of some."""
    taken = []
    for _ in range(COLD_STARTS):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True)
        taken.append(time.monotonic() - began)
    return statistics.median(taken)
