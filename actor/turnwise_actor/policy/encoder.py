"""From what a frontend sent to the policy's inputs. The layout is fixed by the domain.

    text     present, then `size` hashed inputs: signed, L2-normalised
    slots    in domain order
             category: present, one input a category, `<other>`
             number:   present, clamped, value scaled to [-1, 1]
             bool:     present, value -1 or 1
    features as given
    history  newest first: one input an action

An absent text or slot is all zeros. `Encoder.feature_names` names every input; a grown domain keeps the
names of its predecessor's inputs, and weights are carried over by name.

Text becomes lower-case NFKC words. A word counts 1, a pair of neighbours 1, and the character 3-grams of a
word (padded with a space at both ends) count 1 together, so that misspelt and inflected words stay close.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from turnwise_actor.policy.domain import Domain
from turnwise_actor.policy.domain_file import did_you_mean, is_finite, show
from turnwise_actor.policy.sections import OTHER, BoolSlot, CategorySlot, NumberSlot, Slot

Float32 = npt.NDArray[np.float32]

MAX_TEXT_CHARS = 4096
"""The rest of a longer text is ignored."""

MAX_FEATURE = 1e6
"""Raw features lie within plus and minus this: beyond it the network's sums are no longer sound."""
_FEATURE_WANTED = f"a number from {-MAX_FEATURE:g} to {MAX_FEATURE:g}; not NaN"

_CACHED_TOKENS = 4096
_CACHED_CHARS = 32
"""Longer words are hashed anew each time, so that the caches stay within a few megabytes."""

# Everything but white space, ASCII punctuation (' and _ excepted), Latin-1 symbols, general and CJK
# punctuation. Not \w: that would cut words of scripts with combining vowel signs.
_WORD = re.compile(
    r"[^\s\x00-\x26\x28-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf"
    r"\u2000-\u200b\u200e-\u206f\u3000-\u303f\ufeff]+"
)


class RawObservation(NamedTuple):
    """What the bot sees at one turn, as the frontend sent it. `features`: <float32>[F]."""

    text: str | None = None
    slots: Mapping[str, str | float | bool] = MappingProxyType({})
    features: Float32 | None = None


@dataclass(frozen=True)
class FieldViolation:
    """One field of an observation that does not fit the domain."""

    field: str
    got: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.field}: got {self.got}; wanted {self.wanted}"


class EncodingError(ValueError):
    """An observation that does not fit the domain. Lists every violation, not only the first."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = list(violations)
        super().__init__("; ".join(map(str, self.violations)))


class Encoder:
    """Encodes observations of one domain. Immutable; one serves a whole process."""

    size: int
    """Number of inputs."""
    text_size: int
    """Hashed inputs of the text; 0: the domain has none."""
    slot_at: dict[str, int]
    """First input of each slot."""
    features_at: int
    history_at: int

    def __init__(self, domain: Domain) -> None:
        state = domain.state
        self.text_size = state.text.size if state.text else 0
        self._features = state.features
        self._history = state.history
        self._slots = dict(state.slots)
        self._action_ids = domain.action_ids
        self._action_index = domain.action_index
        self.slot_at = {}
        at = self.text_size + 1 if state.text else 0
        for name, slot in self._slots.items():
            self.slot_at[name] = at
            at += _slot_width(slot)
        self.features_at = at
        self.history_at = at + self._features
        self._category_at = {
            name: {word: self.slot_at[name] + 1 + i for i, word in enumerate(slot.categories)}
            for name, slot in self._slots.items()
            if isinstance(slot, CategorySlot)
        }
        self.size = self.history_at + self._history * len(self._action_ids)

    def validate(self, raw: RawObservation) -> None:
        """Checks an observation against the domain.

        Raises:
            EncodingError: with all violations.
        """
        violations: list[FieldViolation] = []
        if raw.text is not None:
            self._validate_text(raw.text, violations)
        for name, value in raw.slots.items():
            self._validate_slot(name, value, violations)
        if raw.features is not None or self._features:
            self._validate_features(raw.features, violations)
        if violations:
            raise EncodingError(violations)

    def encode(self, raw: RawObservation, history: Sequence[str] = ()) -> Float32:
        """The policy's inputs, <float32>[size].

        Args:
            raw: validated here, too.
            history: ids of the policy's own last actions in this dialogue, oldest first; only the last
                `state.history` of them are used.

        Raises:
            EncodingError: the observation or the history does not fit the domain.
        """
        self.validate(raw)
        x = np.zeros(self.size, np.float32)
        self.fill(x, raw, history)
        return x

    def encode_features(self, packed: Sequence[bytes]) -> tuple[Float32, npt.NDArray[np.bool_]]:
        """The inputs of observations that have nothing but features, <float32>[B, size].

        And whether they are known to be valid, <bool>[B]: `encode` has the last word on the others.

        Args:
            packed: little-endian float32, as many as the domain has features, at least one.
        """
        rows = np.frombuffer(b"".join(packed), "<f4").reshape(len(packed), self._features)
        sound = np.einsum("bf,bf->b", rows, rows) < MAX_FEATURE**2 / 2
        if self._features == self.size:
            return rows.astype(np.float32, copy=False), sound
        x = np.zeros((len(packed), self.size), np.float32)
        x[:, self.features_at : self.history_at] = rows
        return x, sound

    def fill(self, x: Float32, raw: RawObservation, history: Sequence[str] = ()) -> None:
        """Writes the inputs of an observation that is known to be valid to <float32>[size] `x`, all zero."""
        if raw.text is not None:
            x[0] = 1.0
            encode_text(raw.text, self.text_size, x)
        for name, value in raw.slots.items():
            self._encode_slot(name, value, x)
        if self._features and raw.features is not None:
            x[self.features_at : self.history_at] = raw.features
        if self._history and history:
            self._encode_history(history, x)

    def feature_names(self) -> list[str]:
        """A name for every input, unique, the same in every grown domain."""
        names = ["text", *(f"text[{i}]" for i in range(self.text_size))] if self.text_size else []
        for name, slot in self._slots.items():
            names += [f"slots[{name}]{suffix}" for suffix in _slot_suffixes(slot)]
        names += [f"features[{i}]" for i in range(self._features)]
        names += [f"history[{lag}]={a}" for lag in range(1, self._history + 1) for a in self._action_ids]
        return names

    def _validate_text(self, text: object, violations: list[FieldViolation]) -> None:
        if not self.text_size:
            violations.append(FieldViolation("observation.text", show(text), "none: the domain has no text"))
        elif not isinstance(text, str):
            violations.append(FieldViolation("observation.text", show(text), "a string"))

    def _validate_slot(self, name: str, value: object, violations: list[FieldViolation]) -> None:
        slot = self._slots.get(name)
        if slot is None:
            hint = did_you_mean(name, self._slots)
            known = (
                f"one of the slots {', '.join(self._slots)}"
                if self._slots
                else "none: the domain has no slots"
            )
            violations.append(FieldViolation(f"observation.slots[{name}]", "an unknown slot", known + hint))
        elif (wanted := _slot_wanted(slot, value)) is not None:
            violations.append(FieldViolation(f"observation.slots[{name}]", show(value), wanted))

    def _validate_features(self, features: object, violations: list[FieldViolation]) -> None:
        wanted = f"{self._features} float32" if self._features else "none: the domain has no features"
        if features is None:
            violations.append(FieldViolation("observation.features", "nothing", wanted))
        elif not isinstance(features, np.ndarray) or features.dtype != np.float32:
            got = f"{features.dtype}" if isinstance(features, np.ndarray) else show(features)
            violations.append(FieldViolation("observation.features", got, wanted))
        elif features.shape != (self._features,):
            got = f"{features.size}" if features.ndim == 1 else f"shape {features.shape}"
            violations.append(FieldViolation("observation.features", got, wanted))
        # Squares that add up to less than one's limit: one call says what is true of nearly all.
        elif not features.dot(features) < MAX_FEATURE**2 / 2:
            sound = np.abs(features) <= MAX_FEATURE
            for index in np.flatnonzero(~sound):
                where, got = f"observation.features[{index}]", f"{features[index]:g}"
                violations.append(FieldViolation(where, got, _FEATURE_WANTED))

    def _encode_slot(self, name: str, value: str | float | bool, x: Float32) -> None:
        slot, at = self._slots[name], self.slot_at[name]
        x[at] = 1.0
        if isinstance(slot, CategorySlot):
            places = self._category_at[name]
            x[places.get(str(value), at + 1 + len(places))] = 1.0
        elif isinstance(slot, NumberSlot):
            number = min(max(float(value), slot.min), slot.max)
            x[at + 1] = number != value
            x[at + 2] = 2.0 * ((number - slot.min) / (slot.max - slot.min)) - 1.0
        else:
            x[at + 1] = 1.0 if value else -1.0

    def _encode_history(self, history: Sequence[str], x: Float32) -> None:
        actions = len(self._action_ids)
        for lag, action_id in enumerate(reversed(history[-self._history :])):
            index = self._action_index.get(action_id)
            if index is None:
                hint = did_you_mean(action_id, self._action_ids)
                where = f"history[{len(history) - 1 - lag}]"
                raise EncodingError([FieldViolation(where, show(action_id), f"an action id{hint}")])
            x[self.history_at + lag * actions + index] = 1.0


def _slot_width(slot: Slot) -> int:
    return len(_slot_suffixes(slot))


def _slot_suffixes(slot: Slot) -> list[str]:
    match slot:
        case CategorySlot(categories):
            return ["", *(f"={word}" for word in categories), f"={OTHER}"]
        case NumberSlot():
            return ["", ".clamped", ".value"]
        case BoolSlot():
            return ["", ".value"]


def _slot_wanted(slot: Slot, value: object) -> str | None:
    """What the slot wants, where the value is something else."""
    match slot:
        case CategorySlot():
            return None if isinstance(value, str) else "a string"
        case BoolSlot():
            return None if isinstance(value, bool | np.bool_) else "true or false"
        case NumberSlot():
            if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
                return "a number"
            return None if is_finite(value) else "a finite number"


def words_of(text: str) -> list[str]:
    """The words of a text as the encoder sees them."""
    text = text[:MAX_TEXT_CHARS]
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    words = _WORD.findall(text.lower())
    return [word.strip("'") or word for word in words] if "'" in text else words


def encode_text(text: str, size: int, x: Float32) -> None:
    """Writes the hashed words of a text to x[1 : 1 + size]."""
    places: list[int] = []
    weights: list[float] = []
    previous = ""
    for word in words_of(text):
        of_word = _word_entries if len(word) <= _CACHED_CHARS else _word_entries.__wrapped__
        word_places, word_weights = of_word(word, size)
        places += word_places
        weights += word_weights
        if previous:
            of_pair = _pair_entry if len(previous) + len(word) <= _CACHED_CHARS else _pair_entry.__wrapped__
            place, weight = of_pair(previous, word, size)
            places.append(place)
            weights.append(weight)
        previous = word
    if places:
        sums = np.bincount(places, weights, size)
        norm = math.sqrt(sums.dot(sums))
        if norm > 0.0:  # signs may cancel out
            np.multiply(sums, 1.0 / norm, out=x[1 : 1 + size], casting="same_kind")


@lru_cache(maxsize=_CACHED_TOKENS)
def _word_entries(word: str, size: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Places and weights of a word and of its character 3-grams."""
    padded = f" {word} "
    grams = [padded[i : i + 3] for i in range(len(padded) - 2)]
    weight = 1.0 / math.sqrt(len(grams))
    entries = [_hashed(f"w{word}", size, 1.0), *(_hashed(f"c{gram}", size, weight) for gram in grams)]
    return tuple(place for place, _ in entries), tuple(weight for _, weight in entries)


@lru_cache(maxsize=_CACHED_TOKENS)
def _pair_entry(first: str, second: str, size: int) -> tuple[int, float]:
    return _hashed(f"b{first} {second}", size, 1.0)


def _hashed(token: str, size: int, weight: float) -> tuple[int, float]:
    """Place in 0..size-1 and signed weight of a token; the same on every machine, for ever."""
    digest = blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    return (number >> 1) % size, weight if number & 1 else -weight
