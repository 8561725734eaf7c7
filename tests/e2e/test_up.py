"""`turnwise up` with the real learner and actors, as a person at a terminal uses it."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import turnwise
from tests.waiting import eventually

REPOSITORY = Path(__file__).parents[2]
DOMAIN = REPOSITORY / "examples/quickstart/domain.yaml"
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        str(REPOSITORY / part) for part in ("client", "actor", "learner", "deploy")
    ),
}
TURNWISE = (sys.executable, "-m", "turnwise_cli")

pytestmark = pytest.mark.timeout(240)


class Up:
    """`turnwise up`, ready."""

    def __init__(self, data):
        self.data = data
        self.process = subprocess.Popen(
            [
                *TURNWISE,
                "up",
                "--domain",
                DOMAIN,
                "--data",
                data,
                "--actors",
                "2",
                "--port=0",
                "--learner-port=0",
            ],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        ready = re.fullmatch(r"ready actors=(\S+) learner=(\S+)\n", line)
        assert ready, (line, self.process.stderr)
        self.actors, self.learner = ready[1].split(","), ready[2]

    def run(self, *arguments, input=None):
        command = [*TURNWISE, *arguments]
        options = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 60}
        return subprocess.run(command, input=input, **options)

    def status(self):
        return json.loads(self.run("status", "--json", "--data", str(self.data)).stdout)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=120)
        assert (self.process.returncode, out) == (0, ""), err
        return err

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=120)


def test_a_person_teaches_stops_and_goes_on(tmp_path):
    data = tmp_path / "data"
    with Up(data) as up:
        chat = up.run("chat", *up.actors, input="hello\n/fix greet\n/end goodbye\nhello\n+\n/end success\n")
        assert chat.returncode == 0, chat.stdout + chat.stderr
        assert chat.stdout.count("learned in") == 2
        assert chat.stdout.count("bot> Hello! What can I do for you?") >= 1
        status = up.status()
        assert {actor["report"]["address"] for actor in status["actors"]} == set(up.actors)
        saved = up.run("checkpoint", "--pin", "--data", str(data))
        assert saved.returncode == 0, saved.stderr
        assert Path(saved.stdout.strip()).is_dir()
        versions = up.run("versions", "--data", str(data)).stdout
        assert Path(saved.stdout.strip()).name in versions
        eventually(lambda: up.status()["trainer"]["rated_turns"] == 2)
        said = up.stop()
        assert str(data) in said
    for verb in ("ledger", "resume-report"):
        result = up.run(verb, "--data", str(data))
        assert result.returncode == 0, result.stdout + result.stderr
    with Up(data) as up:
        after = up.status()
        assert after["trainer"]["rated_turns"] == 2
        assert after["journal_cursor"] >= status["journal_cursor"]
        assert after["published"]["generation"] == 2
        with turnwise.Client(up.actors) as bot, bot.dialogue(mode="evaluate") as talk:
            assert talk.act(text="hello").action == "greet"
        up.stop()


def test_parts_that_are_killed_come_back_and_nothing_said_meanwhile_is_lost(tmp_path):
    data = tmp_path / "data"
    with Up(data) as up, turnwise.Client(up.actors) as bot:
        before = up.status()
        os.kill(before["pid"], signal.SIGKILL)
        with bot.dialogue(user="ann") as talk:
            receipt = talk.act(text="hello").reward(1)
            talk.end("goodbye")
        assert receipt.settled in ("LEARNER", "SPOOLED")
        os.kill(before["actors"][0]["report"]["pid"], signal.SIGKILL)

        def recovered():
            try:
                status = up.status()
            except json.JSONDecodeError:  # the learner is not there yet
                return False
            pids = {actor["report"]["pid"] for actor in status["actors"] if actor["connected"]}
            return (
                status["pid"] != before["pid"]
                and status["trainer"]["rated_turns"] == 1
                and len(pids) == 2
                and before["actors"][0]["report"]["pid"] not in pids
            )

        eventually(recovered)
        said = up.stop()
    assert "the learner was ended by signal 9" in said
    assert "was ended by signal 9; starting it again" in said
