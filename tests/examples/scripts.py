"""Examples, run as their readers would."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
PARTS = [str(REPOSITORY / part) for part in ("client", "actor", "learner", "deploy")]
PATIENCE_S = 230


def printed(script: str, *options: str, typed: str = "") -> str:
    """What an example prints; it has to end well."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PARTS)}
    command = [sys.executable, str(EXAMPLES / script), *options]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, input=typed
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
