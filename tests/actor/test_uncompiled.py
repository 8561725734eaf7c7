"""An actor without any compiled code keeps to the same tests: on `grpc.aio`, in Python alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAME = ("test_access.py", "test_bad_requests.py", "test_converse.py", "test_feedback.py", "test_turns.py")


@pytest.mark.timeout(300)
def test_without_compiled_code_it_is_the_same_actor() -> None:
    folder = Path(__file__).parent
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *(str(folder / name) for name in SAME),
        ],
        env=os.environ | {"TURNWISE_COMPILED": "no"},
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout
