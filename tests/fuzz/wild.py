"""What fuzzing is made of: damaged bytes, random messages of a type, random trees of a file."""

import os
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("TURNWISE_FUZZ_EXAMPLES", "60"))
"""Inputs of each test; the long run is `TURNWISE_FUZZ_EXAMPLES=50000 pytest tests/fuzz`."""

FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 1000,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)

_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_STRINGS = st.one_of(st.sampled_from(["", "greet", "intent", "d", "shop", "x" * 200]), st.text(max_size=40))
_DEPTH = 3


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with some flipped, cut out, put in or doubled."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "truncate", "double"])):
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del content[at : at + draw(st.integers(1, 16))]
            case "insert":
                content[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "truncate":
                del content[at:]
            case "double":
                content[at:at] = content[at : at + draw(st.integers(1, 64))]
    return bytes(content)


def messages(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Messages of a type with any of their fields set to anything that the type allows."""
    return _fields(kind.DESCRIPTOR, 0).map(lambda given: kind(**given))


def _fields(descriptor: Any, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    optional = {}
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE and depth >= _DEPTH:
            continue
        value = _value(field, depth)
        optional[field.name] = st.lists(value, max_size=3) if field.is_repeated else value
    return st.fixed_dictionaries({}, optional=optional)


def _value(field: Any, depth: int) -> st.SearchStrategy[Any]:
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            return _fields(field.message_type, depth + 1)
        case FieldDescriptor.TYPE_STRING:
            return _STRINGS
        case FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=64)
        case FieldDescriptor.TYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.TYPE_DOUBLE:
            return st.floats()
        case FieldDescriptor.TYPE_FLOAT:
            return st.floats(width=32)
        case FieldDescriptor.TYPE_ENUM:
            return st.integers(-1, 12)
    low, high = _INTEGERS[field.type]
    return st.integers(low, high)


def trees(names: list[str]) -> st.SearchStrategy[Any]:
    """What a YAML or JSON file may hold, with keys of one's own among others."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=12),
        st.sampled_from(["hashing", "number", "bool", "30m", "0s", "auto", "x" * 300]),
    )
    keys = st.one_of(st.sampled_from(names), st.text(max_size=6), st.integers())
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
        max_leaves=25,
    )
