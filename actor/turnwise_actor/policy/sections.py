"""The sections of a domain file: what each holds, and how it is read and written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from turnwise_actor.policy.domain_file import Node

OTHER = "<other>"
LEARNING_DEFAULTS: Mapping[str, Any] = {"gamma": 0.0, "n_step": 1, "updates_per_lesson": 8, "batch_size": 32}
ACTIVATIONS = ("relu", "tanh", "silu")

_SHAPE_KEYS = ("hidden", "activation", "layer_norm")
_MAX_INPUTS = 1 << 20
_MAX_HISTORY = 32

_STATE_KEYS = ("text", "slots", "features", "history")
_ACTION_ID = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_ACTION_ID_WANTED = "1 to 64 of a-z, 0-9, _ and -, the first a letter"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_NAME_WANTED = "1 to 64 letters, digits, _, . and -, the first a letter"


@dataclass(frozen=True)
class TextSpec:
    """The person's words as `size` hashed inputs."""

    size: int = 1024
    encoder: Literal["hashing"] = "hashing"


@dataclass(frozen=True)
class CategorySlot:
    """One of some words; any other word counts as `<other>`."""

    type: ClassVar[Literal["category"]] = "category"
    categories: tuple[str, ...]


@dataclass(frozen=True)
class NumberSlot:
    """A number; scaled from [min, max] to [-1, 1], clamped with a flag."""

    type: ClassVar[Literal["number"]] = "number"
    min: float
    max: float


@dataclass(frozen=True)
class BoolSlot:
    """True or false."""

    type: ClassVar[Literal["bool"]] = "bool"


Slot = CategorySlot | NumberSlot | BoolSlot


@dataclass(frozen=True)
class StateSpec:
    """What the bot sees. The order of `slots` is the order of the inputs."""

    text: TextSpec | None = None
    slots: dict[str, Slot] = field(default_factory=dict)
    features: int = 0
    history: int = 0


@dataclass(frozen=True)
class ActionSpec:
    """One thing the bot can do, and the ways to say it (none: the frontend knows how)."""

    id: str
    say: tuple[str, ...] = ()


@dataclass(frozen=True)
class RewardSpec:
    """How ratings are read; all numbers in the units of `range`.

    `per_turn` is added to the reward of every turn: a cost is negative. `correction` is the rating that
    a correction counts as.
    """

    range: tuple[float, float] = (-1.0, 1.0)
    neutral: float = 0.0
    per_turn: float = 0.0
    unrated: Literal["auto", "skip", "neutral"] = "auto"
    wait_s: float = 0.0
    correction: float = 1.0


@dataclass(frozen=True)
class DialogueSpec:
    """When a dialogue is over without anybody saying so."""

    idle_timeout_s: int = 1800
    max_turns: int = 60


def read_name(node: Node) -> str:
    """The domain's name."""
    return node.string(_NAME_WANTED, _NAME)


def read_version(node: Node) -> str:
    """The domain's version; a number is as good as a string."""
    if isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return str(node.value)
    return node.string("a version such as 1 or 2026-05")


def read_state(node: Node) -> StateSpec:
    """The section `state`."""
    node.mapping(_STATE_KEYS)
    state = StateSpec(
        text=_read_text(node.child("text")),
        slots=_read_slots(node.child("slots")),
        features=node.child("features", 0).integer(f"a whole number from 0 to {_MAX_INPUTS}", 0, _MAX_INPUTS),
        history=node.child("history", 0).integer(f"a whole number from 0 to {_MAX_HISTORY}", 0, _MAX_HISTORY),
    )
    given = {} if node.value is None else node.value
    sees = isinstance(given, dict) and (given.get("text") is not None or any(map(given.get, _STATE_KEYS[1:])))
    if isinstance(given, dict) and not sees:
        node.problem(f"something to see: {', '.join(_STATE_KEYS)}")
    return state


def _read_text(node: Node) -> TextSpec | None:
    if node.value is None:
        return None
    node.mapping(("encoder", "size"))
    node.child("encoder", "hashing").choice(("hashing",))
    size = node.child("size", 1024).integer(f"a whole number from 16 to {_MAX_INPUTS}", 16, _MAX_INPUTS)
    return TextSpec(size=size)


def _read_slots(node: Node) -> dict[str, Slot]:
    slots: dict[str, Slot] = {}
    for name in node.mapping():
        entry = node.entry(name)
        if not _NAME.fullmatch(name):
            entry.problem(f"a slot name of {_NAME_WANTED}", got=f"the name {name!r}")
        slots[name] = _read_slot(entry)
    return slots


_SLOT_WANTED = "a list of categories, {type: number, min: …, max: …} or {type: bool}"


def _read_slot(node: Node) -> Slot:
    if isinstance(node.value, list):
        return CategorySlot(_read_categories(node))
    if not isinstance(node.value, dict):
        node.problem(_SLOT_WANTED)
        return BoolSlot()
    kind, kinds = node.child("type"), ("category", "number", "bool")
    if kind.value not in kinds:
        kind.choice(kinds)
        return BoolSlot()
    match kind.value:
        case "category":
            node.mapping(("type", "categories"))
            return CategorySlot(_read_categories(node.child("categories")))
        case "number":
            node.mapping(("type", "min", "max"))
            lo, hi = (node.child(key).number("a finite number") for key in ("min", "max"))
            if lo >= hi or math.isinf(hi - lo):
                node.problem("min below max, both below 1e300", got=f"min {lo:g}, max {hi:g}")
            return NumberSlot(lo, hi)
        case _:
            node.mapping(("type",))
            return BoolSlot()


def _read_categories(node: Node) -> tuple[str, ...]:
    items = node.items("a list of categories, at least one")
    if isinstance(node.value, list) and not items:
        node.problem("a list of categories, at least one")
    categories: list[str] = []
    for item in items:
        category = item.string("a word")
        if category == OTHER:
            item.problem(f"a word; {OTHER} is there by itself")
        elif category in categories:
            item.problem("every category once")
        elif category:
            categories.append(category)
    return tuple(categories)


def read_actions(node: Node) -> tuple[ActionSpec, ...]:
    """The section `actions`."""
    wanted = "a list of two actions or more, each {id: …, say: …}"
    items = node.items(wanted)
    if isinstance(node.value, list) and len(items) < 2:
        node.problem(wanted)
    actions: list[ActionSpec] = []
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        if not isinstance(item.value, dict):
            item.problem("a mapping of id, say")
            continue
        item.mapping(("id", "say"))
        action_id = item.child("id").string(_ACTION_ID_WANTED, _ACTION_ID)
        if action_id in first:
            item.child("id").problem(f"unique ids; actions[{first[action_id]}] has this one too")
        elif action_id:
            first[action_id] = index
        actions.append(ActionSpec(action_id, _read_say(item.child("say"))))
    return tuple(actions)


def _read_say(node: Node) -> tuple[str, ...]:
    if node.value is None:
        return ()
    if isinstance(node.value, str):
        return (node.string("a sentence or a list of them"),)
    return tuple(item.string("a sentence") for item in node.items("a sentence or a list of them"))


def read_rewards(node: Node) -> RewardSpec:
    """The section `rewards`."""
    node.mapping(("range", "neutral", "per_turn", "unrated", "wait", "correction"))
    unrated = node.child("unrated", "auto").choice(("auto", "skip", "neutral"))
    wait_s = node.child("wait", 0).duration_s()
    lo, hi = _read_range(node.child("range", [-1, 1]))
    if math.isnan(lo):
        return RewardSpec()
    within = f"a number in rewards.range [{lo:g}, {hi:g}]"
    neutral = node.child("neutral", (lo + hi) / 2).number(within, lo, hi)
    if math.isnan(neutral):
        neutral = (lo + hi) / 2
    most = (lo - neutral) or (neutral - hi)
    cost = f"a number from {most:g} to 0: it is added to every turn's reward, so a cost is negative"
    return RewardSpec(
        range=(lo, hi),
        neutral=neutral,
        per_turn=node.child("per_turn", 0).number(cost, most, 0.0),
        unrated=unrated,  # type: ignore[arg-type]
        wait_s=wait_s,
        correction=node.child("correction", hi).number(within, lo, hi),
    )


def _read_range(node: Node) -> tuple[float, float]:
    wanted = "two finite numbers [lowest, highest], the first below the second"
    items = node.items(wanted)
    if isinstance(node.value, list) and len(items) != 2:
        node.problem(wanted)
    if len(items) != 2:
        return math.nan, math.nan
    lo, hi = (item.number("a finite number") for item in items)
    if lo >= hi or math.isinf(hi - lo):
        node.problem(wanted)
        return math.nan, math.nan
    return (lo, hi) if lo < hi else (math.nan, math.nan)


def read_dialogue(node: Node) -> DialogueSpec:
    """The section `dialogue`."""
    node.mapping(("idle_timeout", "max_turns"))
    timeout = node.child("idle_timeout", 1800)
    idle_s = timeout.duration_s()
    if not math.isnan(idle_s) and (idle_s < 1 or idle_s != int(idle_s)):
        timeout.problem("whole seconds, at least 1s")
        idle_s = math.nan
    return DialogueSpec(
        idle_timeout_s=0 if math.isnan(idle_s) else int(idle_s),
        max_turns=node.child("max_turns", 60).integer("a whole number from 1 to 1000000", 1, 1_000_000),
    )


def read_learning(node: Node) -> dict[str, Any]:
    """Any field of the learner's config: what shapes the policy is checked here, the rest by the learner."""
    given = node.mapping()
    empty = {key for key in (*LEARNING_DEFAULTS, *_SHAPE_KEYS) if given.get(key) is None}
    learning = {**LEARNING_DEFAULTS, **{key: given[key] for key in given if key not in empty}}
    node.child("gamma", 0.0).number("a number from 0, below 1", 0.0, math.nextafter(1.0, 0.0))
    for key in ("n_step", "updates_per_lesson", "batch_size"):
        node.child(key, LEARNING_DEFAULTS[key]).integer("a whole number from 1 to 1000000", 1, 1_000_000)
    if "hidden" in learning:
        _read_hidden(node.child("hidden"))
    if "activation" in learning:
        node.child("activation").choice(ACTIVATIONS)
    if "layer_norm" in learning and not isinstance(learning["layer_norm"], bool):
        node.child("layer_norm").problem("true or false")
    for key in learning:
        if key not in LEARNING_DEFAULTS:
            _check_plain(node.child(key))
    return learning


def _read_hidden(node: Node) -> None:
    wanted = "a list of layer sizes such as [128] or [256, 128]"
    items = node.items(wanted)
    if isinstance(node.value, list) and not items:
        node.problem(wanted)
    for item in items:
        item.integer("a whole number from 1 to 65536", 1, 65536)


def _check_plain(node: Node, depth: int = 0) -> None:
    """Checks that a value can go through JSON and back."""
    if depth > 8:
        node.problem("nesting up to 8 deep", got="more")
    elif isinstance(node.value, dict):
        for key in node.mapping():
            _check_plain(node.child(key), depth + 1)
    elif isinstance(node.value, list):
        for item in node.items("a list"):
            _check_plain(item, depth + 1)
    elif isinstance(node.value, float):
        node.number("a finite number")
    elif not isinstance(node.value, str | int | None):
        node.problem("a number, a word, true, false, a list or a mapping")


def plain_state(state: StateSpec, ordered: bool = False) -> dict[str, Any]:
    """The section `state` as the file has it; `ordered`: slots as pairs, so that their order counts."""
    slots: Iterable[tuple[str, Any]] = [(name, _plain_slot(slot)) for name, slot in state.slots.items()]
    return {
        "text": {"encoder": state.text.encoder, "size": state.text.size} if state.text else None,
        "slots": slots if ordered else dict(slots),
        "features": state.features,
        "history": state.history,
    }


def _plain_slot(slot: Slot) -> dict[str, Any]:
    match slot:
        case CategorySlot(categories):
            return {"type": "category", "categories": list(categories)}
        case NumberSlot(lo, hi):
            return {"type": "number", "min": lo, "max": hi}
        case BoolSlot():
            return {"type": "bool"}
