"""The three rungs, with few lessons."""

import re
import runpy

import pytest
import yaml

from tests.examples.scripts import EXAMPLES, printed
from turnwise_actor.policy import CategorySlot, Domain

pytestmark = pytest.mark.timeout(240)


def last_of_curve(told: str) -> int:
    return int(re.findall(r"(\d+) of 20$", told, re.M)[-1])


def test_the_table_learns_all_twenty_states() -> None:
    told = printed("ladder/1_tabular.py", "--lessons", "600", "--seed", "1")
    assert last_of_curve(told) == 20
    assert 100 < int(re.findall(r"lessons to 95 %: (\d+)", told)[0]) < 400
    assert 180 < int(re.findall(r"limit: (\d+)", told)[0]) < 240


def test_too_few_lessons_are_told() -> None:
    assert "lessons to 95 %: not within 30" in printed("ladder/1_tabular.py", "--lessons", "30")


def test_a_person_can_be_the_teacher() -> None:
    told = printed("ladder/1_tabular.py", "--by-hand", "--lessons", "3", typed="y\nn\n+\n")
    assert told.count("right? [y/N]") == 3


@pytest.mark.parametrize("script", ["2_network.py", "3_text.py"])
def test_a_rung_gives_its_lessons_and_draws_the_curve(script: str) -> None:
    told = printed(f"ladder/{script}", "--lessons", "10")
    assert re.findall(r"^ +(\d+) [#.]{20} +\d+ of 20$", told, re.M) == ["0", "5", "10"]
    assert "lessons to 95 %: not within 10" in told
    assert re.search(r"^limit: \d+", told, re.M)
    assert ("in other words:" in told) == script.startswith("3")


def test_all_rungs_climb_with_the_same_states() -> None:
    table = runpy.run_path(str(EXAMPLES / "ladder/1_tabular.py"))
    states = yaml.safe_load((EXAMPLES / "ladder/states.yaml").read_text())
    network, text = (Domain.load(EXAMPLES / "ladder" / name) for name in ("network.yaml", "text.yaml"))
    assert {state["word"]: state["action"] for state in states} == table["RIGHT"]
    assert sorted(network.action_ids) == sorted(text.action_ids) == table["ACTIONS"]
    assert network.state.slots["word"] == CategorySlot(tuple(table["RIGHT"]))
