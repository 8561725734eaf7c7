import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from turnwise_actor.policy import (
    BoolSlot,
    CategorySlot,
    Domain,
    DomainError,
    NumberSlot,
    RewardSpec,
    default_spec,
)

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart" / "domain.yaml"

FULL = """
name: shop
version: "7"
state:
  text: {encoder: hashing, size: 64}
  slots: {intent: [greet, order, no], items: {type: number, min: 0, max: 9}, vip: {type: bool}}
  features: 2
  history: 1
actions:
  - {id: greet, say: "Hello!"}
  - {id: ask_size, say: ["Which size?", "What size?"]}
  - {id: wait}
rewards: {range: [0, 5], neutral: 2, per_turn: -0.5, unrated: auto, wait: 30s, correction: 4}
dialogue: {idle_timeout: 1h30m, max_turns: 12}
learning: {gamma: 0.9, n_step: 3, hidden: [32, 16], activation: tanh, lr: 3e-3, notes: {a: [1, true]}}
"""


def full(**changes: Any) -> dict[str, Any]:
    """The full domain as plain values; `changes` replace what stands at dotted paths."""
    plain: dict[str, Any] = json.loads(Domain.from_yaml(FULL).to_json())
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = plain
        for parent in parents:
            target = target[parent]
        target[last] = value
    return plain


def problems_of(value: Any) -> dict[str, str]:
    with pytest.raises(DomainError) as caught:
        Domain.from_mapping(value, "domain.yaml")
    return {problem.field: f"got {problem.got}; wanted {problem.wanted}" for problem in caught.value.problems}


def test_a_file_is_read_in_full() -> None:
    domain = Domain.from_yaml(FULL)
    assert domain.state.text is not None
    assert domain.state.text.size == 64
    assert domain.state.slots == {
        "intent": CategorySlot(("greet", "order", "no")),
        "items": NumberSlot(0.0, 9.0),
        "vip": BoolSlot(),
    }
    assert (domain.state.features, domain.state.history) == (2, 1)
    assert domain.action_ids == ("greet", "ask_size", "wait")
    assert domain.action_index == {"greet": 0, "ask_size": 1, "wait": 2}
    assert [action.say for action in domain.actions] == [("Hello!",), ("Which size?", "What size?"), ()]
    assert domain.rewards == RewardSpec((0.0, 5.0), 2.0, -0.5, "auto", 30.0, 4.0)
    assert (domain.dialogue.idle_timeout_s, domain.dialogue.max_turns) == (5400, 12)
    assert (domain.gamma, domain.n_step, domain.learning["updates_per_lesson"]) == (0.9, 3, 8)


def test_the_quickstart_leaves_most_to_the_defaults() -> None:
    domain = Domain.load(QUICKSTART)
    assert domain.rewards == RewardSpec()
    assert (domain.dialogue.idle_timeout_s, domain.dialogue.max_turns) == (1800, 60)
    assert domain.learning == {"gamma": 0.0, "n_step": 1, "updates_per_lesson": 8, "batch_size": 32}


def test_json_gives_the_same_domain_back(tmp_path: Path) -> None:
    for domain in (Domain.from_yaml(FULL), Domain.load(QUICKSTART)):
        again = Domain.from_json(domain.to_json())
        assert again == domain
        assert list(again.state.slots) == list(domain.state.slots)
        assert again.fingerprint == domain.fingerprint
        (tmp_path / "domain.json").write_text(domain.to_json(), encoding="utf-8")
        assert Domain.load(tmp_path / "domain.json") == domain


def test_an_emoji_survives_json(tmp_path: Path) -> None:
    domain = Domain.from_mapping(full(actions=[{"id": "a", "say": "👍 ß"}, {"id": "b"}]))
    assert Domain.from_json(json.dumps(json.loads(domain.to_json()))).actions[0].say == ("👍 ß",)


def test_words_that_old_yaml_misreads_stay_words() -> None:
    slots = "state: {slots: {answer: [yes, no, on, off, 2026-01-01, 1:30]}}"
    domain = Domain.from_yaml(f"name: x\n{slots}\nactions: [{{id: on}}, {{id: off}}]\nlearning: {{lr: 3e-3}}")
    assert domain.state.slots["answer"] == CategorySlot(("yes", "no", "on", "off", "2026-01-01", "1:30"))
    assert domain.learning["lr"] == 0.003


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30m", 1800),
        ("90s", 90),
        ("2h", 7200),
        ("90", 90),
        (90, 90),
        ("1h 30m", 5400),
        ("1d", 86400),
        ("1.5m", 90),
    ],
)
def test_durations_are_read(written: Any, seconds: int) -> None:
    assert Domain.from_mapping(full(dialogue__idle_timeout=written)).dialogue.idle_timeout_s == seconds


@pytest.mark.parametrize(
    "written", ["soon", "-1s", "", "5 parsecs", True, [], -1, "9999d", math.nan, "0s", "1ms"]
)
def test_other_durations_are_refused(written: Any) -> None:
    assert list(problems_of(full(dialogue__idle_timeout=written))) == ["dialogue.idle_timeout"]


def test_all_errors_are_told_at_once_with_field_value_and_wish() -> None:
    value = full(
        name="",
        state__features=-1,
        state__slots={
            "intent": ["a", "a"],
            "items": {"type": "number", "min": 3, "max": 3},
            "vip": {"type": "bol"},
        },
        actions=[{"id": "Greet"}, {"id": "ask"}, {"id": "ask", "sya": "x"}],
        rewards__unrated="sometimes",
        learning__gamma=1.0,
    )
    assert problems_of(value) == {
        "name": "got ''; wanted 1 to 64 letters, digits, _, . and -, the first a letter",
        "state.features": "got -1; wanted a whole number from 0 to 1048576",
        "state.slots[intent][1]": "got 'a'; wanted every category once",
        "state.slots[items]": "got min 3, max 3; wanted min below max, both below 1e300",
        "state.slots[vip].type": "got 'bol'; wanted one of category, number, bool (did you mean 'bool'?)",
        "actions[0].id": "got 'Greet'; wanted 1 to 64 of a-z, 0-9, _ and -, the first a letter",
        "actions[2].id": "got 'ask'; wanted unique ids; actions[1] has this one too",
        "actions[2].sya": "got an unknown key; wanted one of id, say (did you mean 'say'?)",
        "rewards.unrated": "got 'sometimes'; wanted one of auto, skip, neutral",
        "learning.gamma": "got 1.0; wanted a number from 0, below 1",
    }


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\nname: y\n")
    with pytest.raises(DomainError, match=r"mine\.yaml: 1 error\n  line 2, column 1: .*'name' twice"):
        Domain.load(path)
    with pytest.raises(DomainError, match=r"absent\.yaml.*\n.*No such file"):
        Domain.load(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"actions": [{"id": "only"}]}, "actions"),
        ({"actions": None}, "actions"),
        ({"actions": [{"id": "a"}, "b"]}, "actions[1]"),
        ({"actions": [{"id": "a"}, {"id": "b"}, None]}, "actions[2]"),
        ({"actions": [{"id": "a"}, {"id": 3}]}, "actions[1].id"),
        ({"actions": [{"id": "a", "say": [""]}, {"id": "b"}]}, "actions[0].say[0]"),
        ({"actions": [{"id": "a", "say": "\ud83d"}, {"id": "b"}]}, "actions[0].say"),
        ({"state": None}, "state"),
        ({"state": {"slots": {}, "features": 0}}, "state"),
        ({"state": 3}, "state"),
        ({"state__text__size": 3}, "state.text.size"),
        ({"state__text__encoder": "bert"}, "state.text.encoder"),
        ({"state__history": 33}, "state.history"),
        ({"state__slots": {"a b": {"type": "bool"}}}, "state.slots[a b]"),
        ({"state__slots": {"a": []}}, "state.slots[a]"),
        ({"state__slots": {"a": ["<other>"]}}, "state.slots[a][0]"),
        ({"state__slots": {"a": [3]}}, "state.slots[a][0]"),
        ({"state__slots": {"a": 3}}, "state.slots[a]"),
        ({"state__slots": {"a": {"type": "bool", "min": 0}}}, "state.slots[a].min"),
        ({"state__slots": {"a": {"type": "number", "min": 0}}}, "state.slots[a].max"),
        ({"state__slots": {"a": {"type": "number", "min": -1.7e308, "max": 1.7e308}}}, "state.slots[a]"),
        ({"rewards__range": [1, -1]}, "rewards.range"),
        ({"rewards__range": [1]}, "rewards.range"),
        ({"rewards__range": [0, math.inf]}, "rewards.range[1]"),
        ({"rewards__neutral": 6}, "rewards.neutral"),
        ({"rewards__correction": -1}, "rewards.correction"),
        ({"rewards__per_turn": 0.1}, "rewards.per_turn"),
        ({"rewards__per_turn": -3}, "rewards.per_turn"),
        ({"dialogue__max_turns": 0}, "dialogue.max_turns"),
        ({"learning__gamma": -0.1}, "learning.gamma"),
        ({"learning__gamma": "high"}, "learning.gamma"),
        ({"learning__n_step": 0}, "learning.n_step"),
        ({"learning__batch_size": True}, "learning.batch_size"),
        ({"learning__hidden": []}, "learning.hidden"),
        ({"learning__hidden": [0]}, "learning.hidden[0]"),
        ({"learning__activation": "rel"}, "learning.activation"),
        ({"learning__layer_norm": 1}, "learning.layer_norm"),
        ({"learning__lr": math.nan}, "learning.lr"),
        ({"learning__a": {"b": [math.inf]}}, "learning.a.b[0]"),
        ({"learning__a": {1}}, "learning.a"),
        ({"learning__a": [[[[[[[[[[1]]]]]]]]]]}, "learning.a[0][0][0][0][0][0][0][0][0]"),
        ({"rewrads": {}}, "rewrads"),
    ],
)
def test_each_rule_is_checked_at_its_field(changes: dict[str, Any], field: str) -> None:
    assert field in problems_of(full(**changes))


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "a: [", "? [a]\n: 3", "a: &x [*x]", "!!python/object:os.x {}", "[" * 9999]
)
def test_text_that_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(DomainError):
        Domain.from_yaml(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)
PATHS = [
    *("name", "version", "state", "state__text", "state__text__size", "state__slots", "state__slots__intent"),
    *("state__features", "state__history", "actions", "rewards", "rewards__range", "rewards__neutral"),
    *("rewards__per_turn", "rewards__wait", "rewards__correction", "dialogue", "dialogue__idle_timeout"),
    *("learning", "learning__gamma", "learning__hidden", "learning__anything"),
]


@given(st.sampled_from(PATHS), json_values)
def test_any_value_anywhere_makes_a_sound_domain_or_a_domain_error(path: str, value: Any) -> None:
    try:
        domain = Domain.from_mapping(full(**{path: value}))
    except DomainError:
        return
    again = Domain.from_json(domain.to_json())
    assert again == domain
    assert again.fingerprint == domain.fingerprint
    assert default_spec(domain).inputs > 0
    assert -1.0 <= domain.per_turn_scaled <= 0.0


@given(st.text(max_size=200))
def test_any_text_makes_a_domain_or_a_domain_error(text: str) -> None:
    for read in (Domain.from_yaml, Domain.from_json):
        with pytest.raises(DomainError):
            read(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("state__text__size", 65),
        ("state__slots", {"vip": {"type": "bool"}}),
        ("state__slots", {"intent": ["greet", "no", "order"]}),
        ("state__features", 3),
        ("state__history", 2),
        ("actions", [{"id": "ask_size"}, {"id": "greet"}, {"id": "wait"}]),
    ],
)
def test_the_fingerprint_changes_with_what_shapes_the_policy(path: str, value: Any) -> None:
    assert Domain.from_mapping(full(**{path: value})).fingerprint != Domain.from_yaml(FULL).fingerprint


def test_the_fingerprint_changes_with_the_order_of_slots() -> None:
    slots = full()["state"]["slots"]
    turned = Domain.from_mapping(full(state__slots=dict(reversed(slots.items()))))
    assert turned.fingerprint != Domain.from_yaml(FULL).fingerprint


def test_the_fingerprint_is_over_nothing_else() -> None:
    actions = [{"id": action_id, "say": "other words"} for action_id in ("greet", "ask_size", "wait")]
    other = full(name="other", version="8", actions=actions, rewards={}, dialogue={}, learning={})
    assert Domain.from_mapping(other).fingerprint == Domain.from_yaml(FULL).fingerprint


def test_the_fingerprint_of_the_quickstart_stays() -> None:
    """Data folders out there name it: a change here orphans them."""
    assert Domain.load(QUICKSTART).fingerprint == "885652f2b58135d5"


@pytest.mark.parametrize(("rating", "scaled"), [(0, -1.0), (1, -0.5), (2, 0.0), (3.5, 0.5), (5, 1.0)])
def test_ratings_are_scaled_piecewise_around_neutral(rating: float, scaled: float) -> None:
    assert Domain.from_yaml(FULL).scale_reward(rating) == pytest.approx(scaled)


@pytest.mark.parametrize("rating", [-0.1, 5.1, math.nan, math.inf])
def test_a_rating_outside_the_range_is_refused(rating: float) -> None:
    with pytest.raises(ValueError, match=r"got .*; wanted a number in rewards.range \[0, 5\]"):
        Domain.from_yaml(FULL).scale_reward(rating)


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_scaling_keeps_the_order_the_ends_and_the_bounds(
    lo: float, width: float, at: float, a: float, b: float, cost: float
) -> None:
    hi = lo + width
    neutral = min(lo + at * width, hi)
    per_turn = -cost * ((neutral - lo) or (hi - neutral))
    rewards = {"range": [lo, hi], "neutral": neutral, "per_turn": per_turn}
    domain = Domain.from_mapping(full(rewards=rewards))
    low, high = sorted((min(lo + a * width, hi), min(lo + b * width, hi)))
    assert -1.0 <= domain.scale_reward(low) <= domain.scale_reward(high) <= 1.0
    assert domain.scale_reward(neutral) == 0.0
    assert domain.scale_reward(lo) == (0.0 if neutral == lo else -1.0)
    assert domain.scale_reward(hi) == (0.0 if neutral == hi else 1.0)
    unrated = domain.scale_reward(neutral) + domain.per_turn_scaled
    assert unrated >= domain.untried_value


def test_a_turns_cost_is_scaled_like_a_rating_below_neutral() -> None:
    domain = Domain.from_yaml(FULL)
    assert domain.per_turn_scaled == pytest.approx(domain.scale_reward(2.0 - 0.5))
    assert domain.untried_value == domain.per_turn_scaled


@pytest.mark.parametrize(
    ("gamma", "unrated", "rule"),
    [(0.0, "auto", "skip"), (0.9, "auto", "neutral"), (0.0, "neutral", "neutral"), (0.9, "skip", "skip")],
)
def test_auto_skips_unrated_turns_at_gamma_0_only(gamma: float, unrated: str, rule: str) -> None:
    domain = Domain.from_mapping(full(learning__gamma=gamma, rewards__unrated=unrated))
    assert domain.unrated_rule == rule


def test_the_learning_section_shapes_the_network() -> None:
    spec = default_spec(Domain.from_yaml(FULL))
    assert (spec.hidden, spec.activation, spec.layer_norm, spec.actions) == ((32, 16), "tanh", True, 3)
    assert default_spec(Domain.load(QUICKSTART)).hidden == (128,)


def test_the_full_example_is_also_plain_yaml() -> None:
    assert Domain.from_mapping(yaml.safe_load(FULL.replace("no]", "'no']").replace("3e-3", "0.003"))) == (
        Domain.from_yaml(FULL)
    )


def test_an_empty_learning_field_is_the_learners_to_judge() -> None:
    learning = Domain.from_mapping(full(learning={"grad_clip": None, "gamma": None, "hidden": None})).learning
    assert learning == {
        "gamma": 0.0,
        "n_step": 1,
        "updates_per_lesson": 8,
        "batch_size": 32,
        "grad_clip": None,
    }
