"""The quickstart demo, with a goal that takes few ratings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "examples/quickstart/demo.py"
PARTS = [str(REPOSITORY / part) for part in ("client", "actor", "learner", "deploy")]

pytestmark = pytest.mark.timeout(240)


def demo(*options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PARTS)}
    command = [sys.executable, str(DEMO), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=230)


def test_the_bot_learns_is_stopped_and_goes_on(tmp_path):
    done = demo("--out", str(tmp_path / "out"), "--goal", "8", "--limit", "400")
    assert done.returncode == 0, done.stdout + done.stderr
    stopped = re.search(r"rated turns\s+│\s+(\d+)\s+│\s+(\d+)", done.stdout)
    assert stopped is not None
    assert stopped[1] == stopped[2]
    assert (tmp_path / "out" / "learning-curve.png").stat().st_size > 5000
    assert (tmp_path / "out" / "data" / "journal.sqlite").exists()


def test_a_bot_that_has_not_learned_is_told(tmp_path):
    done = demo("--out", str(tmp_path / "out"), "--goal", "20", "--limit", "4")
    assert done.returncode == 1
    assert "not learned: at best" in done.stdout
    assert "Traceback" not in done.stderr
