"""The command line as a whole: what it lists, what it imports, how it fails."""

import importlib
import os
import subprocess
import sys
import venv
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from turnwise_cli.verbs import VERBS, cli

REPOSITORY = Path(__file__).parents[2]
PARTS = [str(REPOSITORY / part) for part in ("client", "actor", "learner", "deploy")]


def turnwise(*arguments, python=sys.executable):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PARTS)}
    command = [python, "-m", "turnwise_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_has_the_help_that_the_list_shows(name):
    command = importlib.import_module(f"turnwise_cli.{VERBS[name].module}").command
    assert isinstance(command, click.Command)
    assert command.get_short_help_str(200) == VERBS[name].help


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_explains_itself(name):
    result = turnwise(name, "--help")
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()
    assert "\\b" not in result.stdout  # click's mark for lines that are kept as they are


def test_the_list_of_verbs_imports_none_of_them():
    code = (
        "import sys; sys.argv = ['turnwise', '--help']\n"
        "from turnwise_cli.verbs import cli\n"
        "cli.main(prog_name='turnwise', standalone_mode=False)\n"
        "heavy = {'grpc', 'rich', 'prompt_toolkit', 'numpy', 'torch', 'ray', 'turnwise'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PARTS)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in VERBS)


def test_a_misspelt_verb_is_told_its_neighbour():
    result = turnwise("stats")
    assert result.returncode == 2
    assert "'status'" in result.stderr


def test_the_version_is_told():
    assert turnwise("--version").stdout.startswith("turnwise ")


def test_without_its_packages_it_names_what_to_install(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    result = turnwise("chat", python=str(tmp_path / "bare/bin/python"))
    assert result.returncode == 1
    assert "pip install 'turnwise[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_verb_without_its_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "turnwise_deploy.local", None)
    monkeypatch.delitem(sys.modules, "turnwise_cli.up", raising=False)
    blocked = ModuleNotFoundError("No module named 'ray'", name="ray")
    monkeypatch.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(blocked))
    result = CliRunner().invoke(cli, ["up"])
    assert result.exit_code == 1
    assert "pip install 'turnwise[learner]'" in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_a_completion_script(shell):
    assert "_TURNWISE_COMPLETE" in turnwise("completion", shell).stdout


def test_verbs_are_completed():
    result = subprocess.run(
        [sys.executable, "-m", "turnwise_cli"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(PARTS),
            "_TURNWISE_COMPLETE": "bash_complete",
            "COMP_WORDS": "turnwise ch",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
    )
    assert [line.partition(",")[2] for line in result.stdout.split()] == ["chat", "checkpoint", "check"]


@pytest.mark.parametrize("verb", [["status"], ["versions"], ["checkpoint"], ["rollback", "1.2"], ["explore"]])
def test_a_learner_that_is_away_is_one_clear_line(verb, tmp_path):
    result = turnwise(*verb, "--learner", "127.0.0.1:1")
    assert result.returncode == 1
    assert "the learner at 127.0.0.1:1 does not answer" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_change_of_exploration_names_its_mode():
    result = turnwise("explore", "--epsilon", "0.1")
    assert result.returncode == 2
    assert "--mode teach or --mode serve" in result.stderr


def test_a_version_that_is_none_is_refused():
    result = turnwise("rollback", "three")
    assert result.returncode == 2
    assert "GENERATION.NUMBER" in result.stderr


@pytest.mark.parametrize("verb", ["ledger", "export", "resume-report"])
def test_a_folder_without_a_journal_is_one_clear_line(verb, tmp_path):
    result = turnwise(verb, "--data", str(tmp_path))
    assert result.returncode == 1
    assert "no journal at" in result.stderr
    assert "Traceback" not in result.stderr
