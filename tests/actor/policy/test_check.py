import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from turnwise_actor.policy import Domain, check_domain, collision_rate
from turnwise_cli.check import command

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart" / "domain.yaml"
OLD: dict[str, Any] = {
    "name": "shop",
    "version": "1",
    "state": {
        "text": {"size": 1024},
        "slots": {
            "intent": ["greet", "order"],
            "items": {"type": "number", "min": 0, "max": 9},
            "vip": {"type": "bool"},
        },
        "features": 2,
        "history": 0,
    },
    "actions": [{"id": "a"}, {"id": "b"}, {"id": "c"}],
}


def changed(**changes: Any) -> dict[str, Any]:
    plain = copy.deepcopy(OLD)
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = plain
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return plain


def found(level: str, new: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, str]:
    findings = check_domain(Domain.from_mapping(new), Domain.from_mapping(old) if old else None)
    return {finding.field: finding.message for finding in findings if finding.level == level}


def check(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_quickstart_has_no_errors_and_no_warnings() -> None:
    assert {finding.level for finding in check_domain(Domain.load(QUICKSTART))} == {"fact"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"version": "2", "actions": [{"id": "new"}, {"id": "a"}, {"id": "b"}, {"id": "mid"}, {"id": "c"}]},
        {
            "version": "2",
            "state__slots__intent": ["bye", "greet", "order", "ask"],
            "state__slots__more": ["x"],
        },
        {"version": "2", "state__features": 5, "rewards__range": [-2, 2]},
        {"actions": [{"id": "a", "say": "Hi"}, {"id": "b"}, {"id": "c"}]},
    ],
)
def test_a_domain_may_grow_anywhere(changes: dict[str, Any]) -> None:
    assert found("error", changed(**changes), OLD) == {}


def test_text_may_be_added() -> None:
    assert found("error", OLD, changed(state__text=None)) == {}


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"actions": [{"id": "a"}, {"id": "c"}]}, "actions", "the action 'b' was removed"),
        ({"actions": [{"id": "b"}, {"id": "a"}, {"id": "c"}]}, "actions", "reordered: 'b', 'a'"),
        ({"state__slots": {"intent": ["greet", "order"]}}, "state.slots", "the slot 'vip' was removed"),
        ({"state__slots__intent": ["greet"]}, "state.slots[intent]", "the category 'order' was removed"),
        ({"state__slots__intent": ["order", "greet"]}, "state.slots[intent]", "reordered: 'order', 'greet'"),
        ({"state__slots__intent": {"type": "bool"}}, "state.slots[intent]", "got type bool; wanted category"),
        ({"state__slots__items__max": 10}, "state.slots[items]", "got 0 to 10; wanted 0 to 9"),
        ({"state__text__size": 2048}, "state.text", "got size 2048; wanted size 1024"),
        ({"state__text": None}, "state.text", "got no text"),
        ({"state__features": 1}, "state.features", "got 1; wanted 2 or more"),
        ({"learning__hidden": [64]}, "learning.hidden", "got (64,); wanted (128,)"),
        ({"learning__activation": "tanh"}, "learning.activation", "got tanh; wanted relu"),
        ({"rewards__range": [0, 1]}, "rewards.range", "got [0.0, 1.0]; wanted [-1.0, 1.0] or wider"),
    ],
)
def test_what_is_lost_or_moved_is_an_error_that_names_it(
    changes: dict[str, Any], field: str, message: str
) -> None:
    assert message in found("error", changed(**changes), OLD)[field]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"actions": [*OLD["actions"], {"id": "d"}]}, "version"),
        ({"name": "other"}, "name"),
        ({"learning__gamma": 0.5}, "learning.gamma"),
        ({"rewards__neutral": 0.5}, "rewards"),
    ],
)
def test_what_changes_the_meaning_of_the_past_is_a_warning(changes: dict[str, Any], field: str) -> None:
    assert field in found("warning", changed(**changes), OLD)
    assert field not in found("warning", OLD, OLD)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"state__text__size": 64}, "state.text.size"),
        ({"rewards__neutral": -1}, "rewards.neutral"),
        ({"rewards__unrated": "neutral"}, "rewards.unrated"),
        ({"learning__n_step": 3}, "learning.n_step"),
        ({"state__history": 2}, "state.history"),
    ],
)
def test_a_known_trap_is_a_warning(changes: dict[str, Any], field: str) -> None:
    assert field in found("warning", changed(**changes))
    assert field not in found("warning", OLD)


def test_the_collision_rate_is_that_of_random_places() -> None:
    assert collision_rate(1024, 1) == 0.0
    assert collision_rate(1024, 2) == pytest.approx(1 / 1024)
    assert collision_rate(1024, 60) == pytest.approx(0.056, abs=1e-3)


def test_the_verb_tells_facts_and_exits_with_0() -> None:
    result = check(QUICKSTART)
    assert result.exit_code == 0
    for part in (
        "fingerprint 885652f2b58135d5",
        "1025 inputs",
        "10 actions",
        "132,874 parameters",
        "5.6%",
        "gamma 0",
    ):
        assert part in result.output


def test_the_verb_exits_with_1_on_errors(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\nstate: {text: {}}\nactions: [{id: a}, {id: a}]\n")
    result = check(bad)
    assert result.exit_code == 1
    assert "bad.yaml: 1 error\n  actions[1].id: got 'a'" in result.output


def test_the_verb_compares_with_an_older_domain(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(OLD))
    new.write_text(json.dumps(changed(actions=[{"id": "a"}, {"id": "c"}])))
    result = check(new, "--against", old)
    assert result.exit_code == 1
    assert "error    actions: the action 'b' was removed" in result.output
    assert check(old, "--against", old).exit_code == 0
