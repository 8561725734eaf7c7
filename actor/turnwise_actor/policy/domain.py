"""A domain: what the bot can see and do, and how rewards are read. Parsed from `domain.yaml`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from turnwise_actor.policy.domain_file import DomainError, Node, Problem, parse
from turnwise_actor.policy.sections import (
    LEARNING_DEFAULTS,
    ActionSpec,
    BoolSlot,
    CategorySlot,
    DialogueSpec,
    NumberSlot,
    RewardSpec,
    Slot,
    StateSpec,
    TextSpec,
    plain_state,
    read_actions,
    read_dialogue,
    read_learning,
    read_name,
    read_rewards,
    read_state,
    read_version,
)

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

LAYOUT_VERSION = 1
"""Changes when the same observation would be encoded differently; part of every fingerprint."""

_KEYS = ("name", "version", "state", "actions", "rewards", "dialogue", "learning")


@dataclass(frozen=True)
class Domain:
    """A parsed, checked domain file."""

    name: str
    state: StateSpec
    actions: tuple[ActionSpec, ...]
    version: str = "1"
    rewards: RewardSpec = field(default_factory=RewardSpec)
    dialogue: DialogueSpec = field(default_factory=DialogueSpec)
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
        shape = [LAYOUT_VERSION, plain_state(self.state, ordered=True), self.action_ids]
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
        name=read_name(node.child("name")),
        version=read_version(node.child("version", "1")),
        state=read_state(node.child("state")),
        actions=read_actions(node.child("actions")),
        rewards=read_rewards(node.child("rewards", {})),
        dialogue=read_dialogue(node.child("dialogue", {})),
        learning=read_learning(node.child("learning", {})),
    )


def _plain_domain(domain: Domain) -> dict[str, Any]:
    rewards, dialogue = domain.rewards, domain.dialogue
    return {
        "name": domain.name,
        "version": domain.version,
        "state": plain_state(domain.state),
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
