"""The trainer's process: what holds however its loop fares."""

import subprocess
import sys
from pathlib import Path

QUICKSTART = Path(__file__).parents[3] / "examples/quickstart/domain.yaml"

STANDS_STILL = """
import os, signal, sys, threading, time
from turnwise_learner.trainer import __main__ as process, training

class Still:
    def __init__(self, *_): pass
    def run(self):
        os.kill(os.getpid(), signal.SIGTERM)
        stands_still()

def stands_still():
    time.sleep(600)

training.start_ray, training.Training = lambda *_: None, Still
process._LONGEST_END_S = 0.5
process.main(sys.argv[1:])
"""


def test_one_that_stands_still_at_its_end_says_where_and_makes_way(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STANDS_STILL, "--data", str(tmp_path), "--domain", str(QUICKSTART)]
    ran = subprocess.run(
        [*command, "--service", "127.0.0.1:1"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 1
    assert "in stands_still" in ran.stderr
