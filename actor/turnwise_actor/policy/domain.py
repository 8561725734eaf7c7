"""A domain: what the bot can see and do, and how rewards are read. Parsed from `domain.yaml`."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from turnwise_actor.policy.domain_file import DomainError, Node, Problem, parse

__all__ = [
    "ActionSpec",
    "BoolSlot",
    "CategorySlot",
    "DialogueSpec",
    "Domain",
    "DomainError",
    "NumberSlot",
    "Problem",
    "RewardSpec",
    "Slot",
    "StateSpec",
    "TextSpec",
]

OTHER = "<other>"
LAYOUT_VERSION = 1
"""Changes when the same observation would be encoded differently; part of every fingerprint."""

LEARNING_DEFAULTS: Mapping[str, Any] = {"gamma": 0.0, "n_step": 1, "updates_per_lesson": 8, "batch_size": 32}
ACTIVATIONS = ("relu", "tanh", "silu")
_MAX_INPUTS = 1 << 20
_MAX_HISTORY = 32

_KEYS = ("name", "version", "state", "actions", "rewards", "dialogue", "learning")
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


@dataclass(frozen=True)
class Domain:
    """A parsed, checked domain file."""

    name: str
    state: StateSpec
    actions: tuple[ActionSpec, ...]
    version: str = "1"
    rewards: RewardSpec = RewardSpec()
    dialogue: DialogueSpec = DialogueSpec()
    learning: dict[str, Any] = field(default_factory=lambda: dict(LEARNING_DEFAULTS))

    @classmethod
    def load(cls, path: str | Path) -> Domain:
        """The domain of a file: YAML, or JSON where the name ends in `.json`.

        Raises:
            DomainError: the file cannot be read, or names everything wrong with it.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DomainError([Problem("domain", str(error), "a readable UTF-8 file")], str(path)) from error
        if path.suffix == ".json":
            return cls.from_json(text, source=str(path))
        return cls.from_yaml(text, source=str(path))

    @classmethod
    def from_yaml(cls, text: str, source: str = "domain") -> Domain:
        """The domain of a YAML text; `source` is named in errors."""
        return cls.from_mapping(parse(text, source, "yaml"), source)

    @classmethod
    def from_json(cls, text: str, source: str = "domain") -> Domain:
        """The inverse of `to_json`."""
        return cls.from_mapping(parse(text, source, "json"), source)

    @classmethod
    def from_mapping(cls, value: Any, source: str = "domain") -> Domain:
        """The domain of a parsed file."""
        problems: list[Problem] = []
        if not isinstance(value, dict):
            Node(value, "", problems).problem(f"a mapping of {', '.join(_KEYS)}")
            raise DomainError(problems, source)
        domain = _read_domain(Node(value, "", problems))
        if problems:
            raise DomainError(problems, source)
        return domain

    def to_json(self) -> str:
        """One line of JSON with the keys of the file, defaults filled in."""
        return json.dumps(_plain_domain(self), ensure_ascii=False, separators=(",", ":"))

    @cached_property
    def action_ids(self) -> tuple[str, ...]:
        """Ids in the order of the Q-values."""
        return tuple(action.id for action in self.actions)

    @cached_property
    def action_index(self) -> dict[str, int]:
        """Position of each action id among the Q-values."""
        return {action_id: index for index, action_id in enumerate(self.action_ids)}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over all that shapes the policy's inputs and outputs: state, history, action ids.

        Phrasings, rewards and learning may change under the same fingerprint.
        """
        shape = [LAYOUT_VERSION, _plain_state(self.state, ordered=True), self.action_ids]
        canonical = json.dumps(shape, sort_keys=True, separators=(",", ":")).encode()
        return hashlib.blake2b(canonical, digest_size=8).hexdigest()

    @property
    def gamma(self) -> float:
        """Discount per turn, [0, 1)."""
        return float(self.learning["gamma"])

    @property
    def n_step(self) -> int:
        """Turns whose rewards are summed before bootstrapping."""
        return int(self.learning["n_step"])

    @property
    def unrated_rule(self) -> Literal["skip", "neutral"]:
        """What a shown, unrated turn counts as: no target of its own, or a neutral reward.

        `auto` is `skip` at gamma 0, where a neutral target would pull taught answers back to "untried",
        and `neutral` above, where the turn carries later rewards back.
        """
        if self.rewards.unrated != "auto":
            return self.rewards.unrated
        return "skip" if self.gamma == 0.0 else "neutral"

    def scale_reward(self, r: float) -> float:
        """A rating in the units of `rewards.range` on the learner's scale.

        Piecewise linear: the bottom of the range is -1, `neutral` 0, the top 1. Where `neutral` is an end of
        the range, that side has no ratings and only the other is used. Excludes `per_turn`.

        Raises:
            ValueError: `r` lies outside the range or is not a number.
        """
        (lo, hi), neutral = self.rewards.range, self.rewards.neutral
        if not lo <= r <= hi:
            raise ValueError(f"reward: got {r!r}; wanted a number in rewards.range [{lo:g}, {hi:g}]")
        if r >= neutral:
            return (r - neutral) / (hi - neutral) if r > neutral else 0.0
        return (r - neutral) / (neutral - lo)

    @cached_property
    def per_turn_scaled(self) -> float:
        """`rewards.per_turn` on the learner's scale, in [-1, 0]: what is added to every turn's scaled reward.

        A cost is a small punishment, so it is scaled as ratings below neutral are.
        """
        (lo, hi), neutral = self.rewards.range, self.rewards.neutral
        return self.rewards.per_turn / ((neutral - lo) or (hi - neutral))

    @property
    def untried_value(self) -> float:
        """Reward, on the learner's scale, that an untried action is taken to have at one turn.

        That is neutral (0) plus the same per-turn cost which every tried turn pays, so that an unrated turn
        is never worse than an untried one, whatever the cost.
        """
        return self.per_turn_scaled


def _read_domain(node: Node) -> Domain:
    node.mapping(_KEYS)
    return Domain(
        name=node.child("name").string(_NAME_WANTED, _NAME),
        version=_read_version(node.child("version", "1")),
        state=_read_state(node.child("state")),
        actions=_read_actions(node.child("actions")),
        rewards=_read_rewards(node.child("rewards", {})),
        dialogue=_read_dialogue(node.child("dialogue", {})),
        learning=_read_learning(node.child("learning", {})),
    )


def _read_version(node: Node) -> str:
    if isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return str(node.value)
    return node.string("a version such as 1 or 2026-05")


def _read_state(node: Node) -> StateSpec:
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


def _read_actions(node: Node) -> tuple[ActionSpec, ...]:
    wanted = "a list of two actions or more, each {id: …, say: …}"
    items = node.items(wanted)
    if isinstance(node.value, list) and len(items) < 2:
        node.problem(wanted)
    actions: list[ActionSpec] = []
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        item.mapping(("id", "say"))
        if not isinstance(item.value, dict):
            continue
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


def _read_rewards(node: Node) -> RewardSpec:
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


def _read_dialogue(node: Node) -> DialogueSpec:
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


def _read_learning(node: Node) -> dict[str, Any]:
    """Any field of the learner's config: what shapes the policy is checked here, the rest by the learner."""
    learning = {**LEARNING_DEFAULTS, **{k: v for k, v in node.mapping().items() if v is not None}}
    gamma = node.child("gamma", 0.0)
    if gamma.number("a number from 0, below 1") < 0 or gamma.value == 1 or _above_one(gamma.value):
        gamma.problem("a number from 0, below 1")
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


def _above_one(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 1


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


def _plain_domain(domain: Domain) -> dict[str, Any]:
    rewards, dialogue = domain.rewards, domain.dialogue
    return {
        "name": domain.name,
        "version": domain.version,
        "state": _plain_state(domain.state),
        "actions": [{"id": action.id, "say": list(action.say)} for action in domain.actions],
        "rewards": {
            "range": list(rewards.range),
            "neutral": rewards.neutral,
            "per_turn": rewards.per_turn,
            "unrated": rewards.unrated,
            "wait": rewards.wait_s,
            "correction": rewards.correction,
        },
        "dialogue": {"idle_timeout": dialogue.idle_timeout_s, "max_turns": dialogue.max_turns},
        "learning": domain.learning,
    }


def _plain_state(state: StateSpec, ordered: bool = False) -> dict[str, Any]:
    """`ordered`: slots as pairs, so that their order shows in the fingerprint."""
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
