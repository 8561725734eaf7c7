import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from turnwise_actor.policy import (
    Domain,
    Exploration,
    NetworkSpec,
    Policy,
    PolicyFileError,
    PolicyVersion,
    initial_policy,
)

DOMAIN = Domain.from_mapping(
    {"name": "x", "state": {"slots": {"vip": {"type": "bool"}}}, "actions": [{"id": "a"}, {"id": "b"}]}
)
SPEC = NetworkSpec(2, 2, (3,))
POLICY = dataclasses.replace(
    initial_policy(DOMAIN, SPEC),
    version=PolicyVersion(3, 17),
    learned_through=42,
    exploration=Exploration(0.1, 0.05),
    updates=1000,
)
DATA = POLICY.to_bytes()


def same(a: Policy, b: Policy) -> bool:
    plain = ("version", "learned_through", "fingerprint", "spec", "exploration", "updates")
    return all(getattr(a, name) == getattr(b, name) for name in plain) and all(
        a.parameters[name].tobytes() == b.parameters[name].tobytes() for name in SPEC.parameter_shapes()
    )


def with_about(**changes: Any) -> bytes:
    """The file with other metadata, its digest left as it was unless changed."""
    with_header = json.loads(DATA[8 : 8 + int.from_bytes(DATA[:8], "little")])
    about = {**json.loads(with_header["__metadata__"]["turnwise"]), **changes}
    return bytes(safetensors.numpy.save(POLICY.parameters, metadata={"turnwise": json.dumps(about)}))


def test_a_policy_survives_its_file_bit_for_bit() -> None:
    again = Policy.from_bytes(DATA)
    assert same(again, POLICY)
    assert again.to_bytes() == DATA
    obs = np.ones((2, 2), np.float32)
    assert np.array_equal(again.network.q_values(obs), POLICY.network.q_values(obs))


def test_other_tools_can_read_the_tensors() -> None:
    tensors = safetensors.numpy.load(DATA)
    assert {name: value.shape for name, value in tensors.items()} == SPEC.parameter_shapes()


def test_the_network_is_built_once() -> None:
    policy = Policy.from_bytes(DATA)
    assert policy.network is policy.network


@given(st.integers(0, len(DATA) - 1))
def test_a_file_cut_short_is_refused(length: int) -> None:
    with pytest.raises(PolicyFileError):
        Policy.from_bytes(DATA[:length])


@given(st.integers(0, len(DATA) * 8 - 1))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    damaged = bytearray(DATA)
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        policy = Policy.from_bytes(bytes(damaged))
    except PolicyFileError:
        return
    assert same(policy, POLICY)  # a bit that means nothing, such as padding


@given(st.binary(max_size=300))
@example(b"")
@example((2).to_bytes(8, "little") + b"{}")
@example((2).to_bytes(8, "little") + b"[]")
@example((100_000).to_bytes(8, "little") + b"[" * 100_000)
@example(b"\xff" * 16)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(PolicyFileError):
        Policy.from_bytes(data)


@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.binary(min_size=1, max_size=9)), max_size=4))
def test_overwritten_bytes_are_noticed(patches: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(DATA)
    for at, patch in patches:
        damaged[at : at + len(patch)] = patch
    try:
        policy = Policy.from_bytes(bytes(damaged))
    except PolicyFileError:
        return
    assert same(policy, POLICY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "got format 2; wanted 1"),
        ({"updates": 1001}, "digest"),
        ({"digest": None}, "digest"),
    ],
)
def test_a_file_says_why_it_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyFileError, match=message):
        Policy.from_bytes(with_about(**changes))


def test_a_safetensors_file_of_somebody_else_is_refused() -> None:
    with pytest.raises(PolicyFileError, match="turnwise"):
        Policy.from_bytes(safetensors.numpy.save(POLICY.parameters))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": NetworkSpec(3, 2, (3,))}, "hidden.0.weight"),
        ({"learned_through": -1}, "learned_through"),
        ({"updates": -1}, "updates"),
    ],
)
def test_a_policy_that_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(POLICY, **changes).to_bytes()


def test_parameters_that_are_not_finite_are_not_written() -> None:
    parameters = {**POLICY.parameters, "head.bias": np.array([0.0, np.nan], np.float32)}
    with pytest.raises(ValueError, match=r"head\.bias"):
        dataclasses.replace(POLICY, parameters=parameters).to_bytes()


def test_parameters_in_another_memory_order_are_written_alike() -> None:
    turned = {name: np.asfortranarray(value) for name, value in POLICY.parameters.items()}
    assert dataclasses.replace(POLICY, parameters=turned).to_bytes() == DATA


def test_versions_are_ordered_by_generation_first() -> None:
    versions = [PolicyVersion(1, 900), PolicyVersion(2, 1), PolicyVersion(2, 10), PolicyVersion(2, 9)]
    assert [str(version) for version in sorted(versions)] == ["1.900", "2.1", "2.9", "2.10"]


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_a_version_survives_its_text(generation: int, number: int) -> None:
    version = PolicyVersion(generation, number)
    assert PolicyVersion.parse(str(version)) == version


@pytest.mark.parametrize("text", ["", "3", "3.", ".3", "3.x", "-1.2", "3.1.2", "٣.1", " 3.1", "4294967296.1"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="version"):
        PolicyVersion.parse(text)


def test_evaluate_and_shadow_never_explore() -> None:
    exploration = Exploration(0.3, 0.2)
    modes = ("teach", "serve", "shadow", "evaluate", "TEACH", "SERVE")
    assert [exploration.epsilon(mode) for mode in modes] == [0.3, 0.2, 0.0, 0.0, 0.3, 0.2]
    assert [Exploration().epsilon(mode) for mode in ("teach", "serve")] == [0.0, 0.02]


def test_other_modes_and_epsilons_are_refused() -> None:
    with pytest.raises(ValueError, match="mode: got 'play'"):
        Exploration().epsilon("play")
    for epsilon in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="serve_epsilon: got"):
            Exploration(serve_epsilon=epsilon)
