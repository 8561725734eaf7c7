"""What fuzzing is made of: damaged bytes, messages with anything in them, trees of a file.

Every input is drawn from a number of its own, so that a failure names it: `Wild.of(test, number)` draws it
again. `TURNWISE_FUZZ_INPUTS=40000 pytest tests/fuzz` plays longer, `TURNWISE_FUZZ_SEED` plays others.
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

INPUTS = int(os.environ.get("TURNWISE_FUZZ_INPUTS", "60"))
"""Inputs of each test."""
SEED = os.environ.get("TURNWISE_FUZZ_SEED", "0")

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_ENUM: (-1, 12),
}
_WORDS = (
    *(
        "",
        "d",
        "greet",
        "ask_size",
        "handoff",
        "nothing",
        "intent",
        "items",
        "vip",
        "order",
        "shop",
        "success",
    ),
    *("idle", "limit", "goodbye", "0" * 32, "f" * 32, "s:", "d:d", "e:d:", "f:\0", "../..", "~01234567"),
    *("\0", "é", "\u202e", "\U0001f600", "%s", "-1", "nan", "1e999", "30m", "hashing", "number", "category"),
    *("x" * 64, "x" * 65, "x" * 128, "é" * 65, "x" * 129),
)
_NUMBERS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.0000001,
    -7.0,
    1e6,
    1e39,
    1e308,
    5e-324,
    *map(float, ("inf", "-inf", "nan")),
)
_MOST_DAMAGES = 4
_DEPTH = 3


class Wild:
    """Draws wild things; the same randomness draws the same."""

    def __init__(self, random: Random) -> None:
        self.random = random

    @classmethod
    def of(cls, test: str, number: int) -> Wild:
        """What draws one input of a test."""
        return cls(Random(f"{SEED}/{test}/{number}"))

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return self.random.random() < share

    def one_of(self, *draws: Callable[[], T]) -> T:
        """What one of them draws."""
        return self.random.choice(draws)()

    def text(self) -> str:
        """Words that something may be made of, and others."""
        if self.chance(0.6):
            return self.random.choice(_WORDS)
        if self.chance(0.02):
            return self.random.choice("xé") * self.random.choice((4097, 8192, 8193))
        end = self.random.choice((127, 0xD800))
        return "".join(chr(self.random.randrange(end)) for _ in range(self.random.randrange(12)))

    def binary(self) -> bytes:
        """Bytes, often a whole number of float32."""
        if self.chance(0.5):
            floats = [self.number(32) for _ in range(self.random.randrange(4))]
            return struct.pack(f"<{len(floats)}f", *floats)
        return self.random.randbytes(self.random.randrange(80))

    def integer(self, low: int, high: int) -> int:
        """Whole numbers, often at the ends of the range and near 0."""
        if self.chance(0.6):
            near = self.random.choice(
                (low, low + 1, high, high - 1, 0, 1, 2, 63, 64, 2**31, 2**32, 2**53, 2**63)
            )
            return min(max(near, low), high)
        return self.random.randint(low, high)

    def number(self, bits: int = 64) -> float:
        """Floats, often those that nobody expects."""
        drawn = self.random.choice(_NUMBERS) if self.chance(0.7) else self.random.uniform(-2, 2)
        return ctypes.c_float(drawn).value if bits == 32 else drawn

    # Bytes

    def damaged(self, whole: bytes) -> bytes:
        """Bytes with some flipped, set, cut out, put in or doubled."""
        content = bytearray(whole)
        for _ in range(self.random.randint(1, _MOST_DAMAGES)):
            at = self.random.randrange(len(content) + 1)
            match self.random.randrange(6):
                case 0 if at < len(content):
                    content[at] ^= 1 << self.random.randrange(8)
                case 1 if at < len(content):
                    content[at] = self.random.choice((0, 1, 0x7F, 0x80, 0xFF))
                case 2:
                    del content[at : at + self.random.randint(1, 16)]
                case 3:
                    content[at:at] = self.random.randbytes(self.random.randint(1, 16))
                case 4:
                    content[at:at] = content[at : at + self.random.randint(1, 64)]
                case _ if self.chance(0.3):
                    del content[at:]
        return bytes(content)

    # Messages

    def message(self, kind: type[M]) -> M:
        """A message with any of its fields set to anything that their types allow."""
        message = kind()
        self._fill(message, 0)
        return message

    def near(self, message: M) -> M:
        """The same message with one to three of its fields, however deep, taken away or replaced."""
        changed = type(message)()
        changed.CopyFrom(message)
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            self._change(changed, 0)
        return changed

    def _change(self, message: Any, depth: int) -> None:
        fields = message.DESCRIPTOR.fields
        if not fields:
            return
        given = [field for field, _ in message.ListFields()]
        field = self.random.choice(given if given and self.chance(0.7) else fields)
        value = getattr(message, field.name)
        inner = [value] if not field.is_repeated else list(value)
        deeper = field.type == FieldDescriptor.TYPE_MESSAGE and field in given and not _is_map(field)
        if deeper and inner and self.chance(0.8):
            self._change(self.random.choice(inner), depth + 1)
            return
        if not field.is_repeated or self.chance(0.5):
            message.ClearField(field.name)
        if self.chance(0.85):
            self._put(message, field, depth)

    def _fill(self, message: Any, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            if self.chance(0.5) and not (field.type == FieldDescriptor.TYPE_MESSAGE and depth >= _DEPTH):
                self._put(message, field, depth)

    def _put(self, message: Any, field: Any, depth: int) -> None:
        for _ in range(self.random.choice((1, 1, 2, 3)) if field.is_repeated else 1):
            held = getattr(message, field.name)
            if _is_map(field):
                self._put_entry(held, field.message_type.fields_by_name)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                inner = held.add() if field.is_repeated else held
                inner.SetInParent()
                self._fill(inner, depth + 1)
            elif field.is_repeated:
                held.append(self._scalar(field))
            else:
                setattr(message, field.name, self._scalar(field))

    def _put_entry(self, held: Any, of: Any) -> None:
        key = self._scalar(of["key"])
        if of["value"].type == FieldDescriptor.TYPE_MESSAGE:
            self._fill(held[key], _DEPTH)
        else:
            held[key] = self._scalar(of["value"])

    def _scalar(self, field: Any) -> Any:
        match field.type:
            case FieldDescriptor.TYPE_STRING:
                return self.text()
            case FieldDescriptor.TYPE_BYTES:
                return self.binary()
            case FieldDescriptor.TYPE_BOOL:
                return self.chance(0.5)
            case FieldDescriptor.TYPE_DOUBLE:
                return self.number()
            case FieldDescriptor.TYPE_FLOAT:
                return self.number(32)
        return self.integer(*_INTEGERS[field.type])

    # Files

    def tree(self, keys: Sequence[str], depth: int = 0) -> Any:
        """What a YAML or JSON file may hold, with keys of one's own among others."""
        if depth < 4 and self.chance(0.5):
            size = self.random.randrange(5)
            if self.chance(0.4):
                return [self.tree(keys, depth + 1) for _ in range(size)]
            return {self._key(keys): self.tree(keys, depth + 1) for _ in range(size)}
        return self.one_of(
            lambda: None,
            lambda: self.chance(0.5),
            lambda: self.integer(-(2**70), 2**70),
            self.number,
            self.text,
        )

    def near_tree(self, tree: Any, keys: Sequence[str]) -> Any:
        """The same tree with something else in one to three places."""
        changed = copy.deepcopy(tree)
        for _ in range(self.random.choice((1, 1, 2, 3))):
            place = changed
            while isinstance(place, dict | list) and place:
                at = self.random.choice(list(place) if isinstance(place, dict) else list(range(len(place))))
                if not isinstance(place[at], dict | list) or self.chance(0.3):
                    place[at] = self.tree(keys)
                    if isinstance(place, dict) and self.chance(0.3):
                        place[self._key(keys)] = place.pop(at)
                    break
                place = place[at]
        return changed

    def _key(self, keys: Sequence[str]) -> Any:
        if self.chance(0.1):
            return self.integer(-3, 3)
        return self.random.choice(keys) if self.chance(0.7) else self.text()


def inputs(test: str, draw: Callable[[Wild], T]) -> Iterator[T]:
    """As many different inputs as each test has; one drawn before does not count again."""
    seen: set[int] = set()
    for number in itertools.count():
        try:
            drawn = draw(Wild.of(test, number))
        except Exception as error:
            raise AssertionError(f"input {number} of {test}, seed {SEED}") from error
        if hash(drawn) not in seen:
            seen.add(hash(drawn))
            yield drawn
        if len(seen) == INPUTS:
            return


def _is_map(field: Any) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def as_json(tree: Any) -> bytes:
    """A tree as a file holds it."""
    return json.dumps(tree, default=str).encode()
