"""What holds for the tree as a whole: generated code, import rules, documents that run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from turnwise.testing import FakeActor

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.timeout(300)
def test_the_generated_code_is_what_the_protos_say() -> None:
    ran = subprocess.run(
        [sys.executable, "protos/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_imports_go_one_way() -> None:
    ran = subprocess.run([BIN / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


def python_blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)


def test_the_lines_in_the_readme_run() -> None:
    (lines,) = python_blocks("README.md")
    assert "localhost:50051" in lines
    assert len([line for line in lines.splitlines() if line.strip()]) <= 10
    with FakeActor(actions=["greet", "ask_size"], script=["greet", "ask_size"]) as actor:
        code = lines.replace("localhost:50051", actor.address)
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr


def test_links_in_the_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{document.name}: {target}"
        for document in documents
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", document.read_text())
        if not (document.parent / target).exists()
    ]
    assert not broken


def test_the_sdk_installs_with_grpcio_and_protobuf_alone() -> None:
    code = (
        "import sys, turnwise, turnwise.testing;"
        "print(sorted({'numpy','torch','ray','click','rich','yaml','pydantic'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "client")}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ran.stdout.strip() == "[]", ran.stderr


@pytest.mark.parametrize("module", ["turnwise_actor.__main__", "turnwise_learner.__main__"])
def test_actors_and_the_service_load_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'ray', 'gymnasium'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr
