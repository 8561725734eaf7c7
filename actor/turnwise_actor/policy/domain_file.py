"""Reading a domain file: strict YAML or JSON into plain values, and `Node`, which checks them.

YAML is read by its 1.2 core rules, because those of 1.1 bite here: a category `no` stays a word, `3e-3`
is a number, `2026-01-01` is a string.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

DURATION = "a duration such as 30m, 90s, 2h or 1h30m, at most 365d; a number alone counts seconds"
_YEAR_S = 365 * 86400.0
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a domain: where, what is there, what is wanted."""

    field: str
    got: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.field}: got {self.got}; wanted {self.wanted}"


class DomainError(ValueError):
    """A domain that cannot be used. Lists every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem], source: str = "domain") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = f"{len(self.problems)} error{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n  ".join([f"{source}: {count}", *map(str, self.problems)]))


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`" (did you mean 'intent'?)"`, or nothing where no known name is close."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def show(value: object, limit: int = 80) -> str:
    """A value as an error message shows it: its repr, cut short."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


@dataclass(frozen=True)
class Node:
    """One value of the file and its path.

    Each reading method returns a value of its type in any case and notes in `problems` what is wrong, so that
    one pass finds everything.
    """

    value: Any
    path: str
    problems: list[Problem]

    def problem(self, wanted: str, got: str | None = None) -> None:
        """Notes that this value is not as wanted."""
        self.problems.append(Problem(self.path or "domain", show(self.value) if got is None else got, wanted))

    def mapping(self, known: Sequence[str] | None = None) -> dict[str, Any]:
        """This value as a mapping with string keys; with `known`, any other key is a problem."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            self.problem(f"a mapping{f' of {_either(known)}' if known else ''}")
            return {}
        for key in self.value:
            if not isinstance(key, str):
                self._at(key).problem("a name that is a string; write it in quotes", got=f"the key {key!r}")
            elif known is not None and key not in known:
                hint = did_you_mean(key, known)
                self._at(key).problem(f"one of {_either(known)}{hint}", got="an unknown key")
        return {key: value for key, value in self.value.items() if isinstance(key, str)}

    def child(self, key: str, default: Any = None) -> Node:
        """The value under a key of this mapping; `default` where it is absent or empty."""
        value = self.value.get(key) if isinstance(self.value, dict) else None
        return self._at(key, default if value is None else value)

    def items(self, wanted: str) -> list[Node]:
        """The elements of this list."""
        if not isinstance(self.value, list | tuple):
            self.problem(wanted)
            return []
        return [Node(v, f"{self.path}[{i}]", self.problems) for i, v in enumerate(self.value)]

    def entry(self, key: str) -> Node:
        """The value under a name that the file's author chose: `state.slots[intent]`."""
        return Node(self.value[key], f"{self.path}[{key}]", self.problems)

    def string(self, wanted: str, pattern: re.Pattern[str] | None = None) -> str:
        """This value as a string that is not empty and matches `pattern` in full."""
        if not isinstance(self.value, str):
            scalar = isinstance(self.value, int | float)
            self.problem(f'{wanted}; write it in quotes: "{self.value}"' if scalar else wanted)
            return ""
        fits = self.value.strip() if pattern is None else pattern.fullmatch(self.value)
        if not fits or not _encodable(self.value):
            self.problem(wanted)
            return ""
        return self.value

    def number(self, wanted: str, lo: float = -math.inf, hi: float = math.inf) -> float:
        """This value as a finite number in [lo, hi]; NaN where it is not one."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
            self.problem(wanted)
            return math.nan
        if not lo <= value <= hi:
            self.problem(wanted)
            return math.nan
        return float(value)

    def integer(self, wanted: str, lo: int, hi: int) -> int:
        """This value as a whole number in [lo, hi]; `lo` where it is not one."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int) or not lo <= value <= hi:
            self.problem(wanted)
            return lo
        return value

    def choice(self, options: Sequence[str]) -> str:
        """This value as one of the options."""
        if self.value not in options:
            self.problem(f"one of {_either(options)}{did_you_mean(self.value, options)}")
            return options[0]
        return str(self.value)

    def duration_s(self) -> float:
        """This value as seconds: `30m`, `1h30m`, `90`."""
        if not isinstance(self.value, str):
            return self.number(DURATION, 0.0, _YEAR_S)
        word, seconds = self.value.replace(" ", ""), math.nan
        if _NUMBER.fullmatch(word):
            seconds = float(word)
        elif _DURATION.fullmatch(word):
            seconds = sum(float(n) * _UNIT_S[unit] for n, unit in _DURATION_PART.findall(word))
        if not seconds <= _YEAR_S:
            self.problem(DURATION)
            return math.nan
        return seconds

    def _at(self, key: object, value: Any = None) -> Node:
        return Node(value, f"{self.path}.{key}" if self.path else str(key), self.problems)


def parse(text: str, source: str, syntax: Literal["yaml", "json"]) -> Any:
    """Plain values of a file's text.

    Raises:
        DomainError: the text is not well-formed, or a mapping has a key twice.
    """
    try:
        if syntax == "json":
            return json.loads(text, object_pairs_hook=_unique_pairs)
        return yaml.load(text, _CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "domain"
        raise _unreadable(where, error.problem, syntax, source) from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise _unreadable("domain", error, syntax, source) from error


def _unreadable(where: str, reason: object, syntax: str, source: str) -> DomainError:
    return DomainError([Problem(where, f"unreadable text ({reason})", f"valid {syntax.upper()}")], source)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} twice")
    return mapping


class _CoreLoader(yaml.SafeLoader):
    """YAML 1.2 core types, no others. Duplicate keys and aliases (which may be endless) are errors."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="an alias", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _core(tag: str, pattern: str, first: str) -> None:
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_core("null", r"^(?:~|null|Null|NULL|)$", "~nN")
_CoreLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])
_core("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_core("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789")
_core("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", "-+0123456789.")
_core("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+.")


def is_finite(value: Any) -> bool:
    """Whether a number fits a float and is neither NaN nor infinite."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float's range
        return False


def _encodable(text: str) -> bool:
    """False for lone surrogates, which JSON and YAML escapes can spell but UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _either(options: Sequence[str] | None) -> str:
    return ", ".join(options or ())
