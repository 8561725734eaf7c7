"""What is compiled, watched by the C compiler's sanitizers: no foreign memory is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("client", "actor", "learner", "deploy", "tests", "examples")
FLAGS = "-fsanitize=address,undefined -fno-omit-frame-pointer"
WATCHED = (
    *("tests/fuzz/test_turns.py", "tests/actor/test_compiled.py"),
    *("tests/fuzz/test_http2.py", "tests/actor/test_http2.py", "tests/actor/test_stream.py"),
)


def _library(name: str) -> str | None:
    """Where the C compiler's own libraries are; None: it has none of that name, or there is no compiler."""
    if shutil.which("cc") is None:
        return None
    asked = ["cc", f"-print-file-name={name}.so"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return found if Path(found).is_absolute() else None


LIBRARIES = [found for name in ("libasan", "libubsan") if (found := _library(name)) is not None]

pytestmark = [
    pytest.mark.skipif(len(LIBRARIES) < 2, reason="the C compiler has no sanitizers here"),
    pytest.mark.timeout(100_000),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, compiled with sanitizers."""
    tree = tmp_path_factory.mktemp("sanitized")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, tree)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "."]
    flags = {"CFLAGS": FLAGS, "LDFLAGS": FLAGS, "TURNWISE_COMPILE": "yes"}
    built = subprocess.run(
        [*build, "-w", str(tree / "wheel")], cwd=tree, env=os.environ | flags, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return tree


def run_sanitized(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    paths = [str(tree / name) for name in SOURCES[:4]] + [str(tree)]
    watching = {
        "LD_PRELOAD": " ".join(LIBRARIES),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has until the end
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # each object with bounds of its own
        "PYTHONPATH": os.pathsep.join(paths),
    }
    return subprocess.run(
        [sys.executable, *command], cwd=tree, env=os.environ | watching, capture_output=True, text=True
    )


def test_wild_turns_leave_foreign_memory_alone(tree: Path) -> None:
    where = run_sanitized(tree, "-c", "from turnwise_actor.compiled import turns; print(turns.__file__)")
    assert where.stdout.startswith(str(tree)), where.stdout + where.stderr
    assert b"__asan_init" in Path(where.stdout.strip()).read_bytes()
    ran = run_sanitized(tree, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *WATCHED)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "passed" in ran.stdout
    assert "skipped" not in ran.stdout


def test_a_read_beyond_the_end_would_be_seen(tree: Path) -> None:
    ran = run_sanitized(tree, "-c", "import ctypes; ctypes.string_at(b'x' * 64, 4096)")
    assert ran.returncode != 0
    assert "AddressSanitizer" in ran.stderr
