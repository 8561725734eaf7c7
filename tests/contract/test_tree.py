"""What holds for the tree as a whole: generated code, import rules, documents that run."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from turnwise.testing import FakeActor
from turnwise_actor.compiled import compiled

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


def network_facing() -> list[Path]:
    """Our sources. Of the trainer's, what hears the service: its checkpoints, on disk, are RLlib's."""
    folders = ("client", "actor", "learner", "deploy")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return [file for file in files if "trainer" not in file.parts or file.name == "service_link.py"]


def what_runs_the_bytes_it_reads(source: str) -> set[str]:
    """Names in a source by which bytes that are read could become code."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torch"}
    calls = {"eval", "exec", "allow_pickle", "unsafe_load", "full_load", "UnsafeLoader", "FullLoader"}
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {name.name.partition(".")[0] for name in names} & modules
            case ast.ImportFrom(module=str(module)):
                found |= {module.partition(".")[0]} & modules
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                found |= {name} & calls
            case _:
                pass
    return found


def test_no_bytes_from_the_network_are_unpickled_or_run() -> None:
    files = network_facing()
    assert len(files) > 60
    found = {file.name: what_runs_the_bytes_it_reads(file.read_text()) for file in files}
    assert not {name: names for name, names in found.items() if names}
    assert what_runs_the_bytes_it_reads("from pickle import loads") == {"pickle"}
    assert what_runs_the_bytes_it_reads("import numpy\nnumpy.load(file, allow_pickle=True)") == {
        "allow_pickle"
    }


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_forward_pass_is_compiled_where_there_is_a_compiler() -> None:
    assert compiled("forward") is not None


@pytest.mark.skipif(not Path("/usr/include/openssl/sha.h").exists(), reason="OpenSSL is not here")
def test_turns_are_answered_by_compiled_code_where_there_is_openssl() -> None:
    assert compiled("turns") is not None


@pytest.mark.skipif(not Path("/usr/include/nghttp2/nghttp2.h").exists(), reason="nghttp2 is not here")
def test_calls_are_taken_by_our_own_http2_where_there_is_nghttp2() -> None:
    assert compiled("http2") is not None


@pytest.mark.parametrize("module", ["turnwise_actor.__main__", "turnwise_learner.__main__"])
def test_actors_and_the_service_load_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'ray', 'gymnasium'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr
