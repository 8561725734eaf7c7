import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from turnwise_actor.policy import (
    EXPLORATION_KINDS,
    Domain,
    Exploration,
    ModeExploration,
    NetworkSpec,
    Policy,
    PolicyFileError,
    PolicyVersion,
    initial_policy,
)
from turnwise_actor.policy.policy_file import _digest

DOMAIN = Domain.from_mapping(
    {"name": "x", "state": {"slots": {"vip": {"type": "bool"}}}, "actions": [{"id": "a"}, {"id": "b"}]}
)
SPEC = NetworkSpec(2, 2, (3,))
POLICY = dataclasses.replace(
    initial_policy(DOMAIN, SPEC),
    version=PolicyVersion(3, 17),
    learned_through=42,
    exploration=Exploration(0.1, 0.05, serve_kind="softmax", serve_temperature=0.3),
    updates=1000,
)
DATA = POLICY.to_bytes()


def same(a: Policy, b: Policy) -> bool:
    plain = ("version", "learned_through", "fingerprint", "spec", "exploration", "updates")
    return all(getattr(a, name) == getattr(b, name) for name in plain) and all(
        a.parameters[name].tobytes() == b.parameters[name].tobytes() for name in SPEC.parameter_shapes()
    )


def read_about() -> dict[str, Any]:
    header = json.loads(DATA[8 : 8 + int.from_bytes(DATA[:8], "little")])
    return dict(json.loads(header["__metadata__"]["turnwise"]))


def with_about(**changes: Any) -> bytes:
    """The file with other metadata, its digest left as it was unless changed."""
    about = {**read_about(), **changes}
    return bytes(safetensors.numpy.save(POLICY.parameters, metadata={"turnwise": json.dumps(about)}))


def test_a_policy_survives_its_file_bit_for_bit() -> None:
    again = Policy.from_bytes(DATA)
    assert same(again, POLICY)
    assert again.to_bytes() == DATA
    obs = np.ones((2, 2), np.float32)
    assert np.array_equal(again.network.q_values(obs), POLICY.network.q_values(obs))


def test_a_big_policy_survives_its_file_bit_for_bit() -> None:
    big = initial_policy(DOMAIN, NetworkSpec(1100, 2, (1100,)), seed=1)
    data = big.to_bytes()
    assert len(data) > 4 << 20
    again = Policy.from_bytes(data)  # its digest fits
    assert all((again.parameters[name] == value).all() for name, value in big.parameters.items())
    assert safetensors.numpy.load(data).keys() == big.parameters.keys()


@pytest.mark.parametrize("units", [3, 1100])
def test_a_policy_that_finds_no_room_says_so(units: int) -> None:
    policy = initial_policy(DOMAIN, NetworkSpec(1100, 2, (units,)))
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        policy.write(full)


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


def test_large_numbers_are_finite() -> None:
    large = {**POLICY.parameters, "head.bias": np.array([3e38, -3e38], np.float32)}
    policy = dataclasses.replace(POLICY, parameters=large)
    assert same(Policy.from_bytes(policy.to_bytes()), policy)


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


def test_a_file_from_before_the_kinds_is_greedy() -> None:
    about = read_about() | {"exploration": {"teach_epsilon": 0.1, "serve_epsilon": 0.05}}
    del about["digest"]
    read = Policy.from_bytes(with_about(**about, digest=_digest(about, POLICY.parameters)))
    assert read.exploration.of("teach") == ModeExploration(0.1, "greedy")
    assert read.exploration.of("serve") == ModeExploration(0.05, "greedy")


def test_evaluate_and_shadow_never_explore() -> None:
    exploration = Exploration(0.3, 0.2, "softmax", "softmax", 0.5, 0.4)
    teach, serve = ModeExploration(0.3, "softmax", 0.5), ModeExploration(0.2, "softmax", 0.4)
    modes = ("teach", "serve", "shadow", "evaluate", "TEACH", "SERVE")
    wanted = [teach, serve, ModeExploration(), ModeExploration(), teach, serve]
    assert [exploration.of(mode) for mode in modes] == wanted
    assert ModeExploration() == ModeExploration(0.0, "greedy")
    assert [Exploration().of(mode) for mode in ("teach", "serve")] == [
        ModeExploration(),
        ModeExploration(0.02),
    ]


def test_a_change_leaves_what_it_does_not_name() -> None:
    before = Exploration(0.3, 0.2, "softmax", "greedy", 0.5, 0.4)
    assert before.changed("teach", epsilon=0.0) == dataclasses.replace(before, teach_epsilon=0.0)
    assert before.changed("SERVE", kind="softmax") == dataclasses.replace(before, serve_kind="softmax")
    assert before.changed("teach", temperature=2.0) == dataclasses.replace(before, teach_temperature=2.0)
    assert before.changed("serve") == before


def test_explorations_that_make_no_sense_are_refused() -> None:
    for mode in ("play", "evaluate"):
        with pytest.raises(ValueError, match=f"mode: got '{mode}'; wanted teach"):
            Exploration().changed(mode, epsilon=0.5)
    with pytest.raises(ValueError, match="mode: got 'play'"):
        Exploration().of("play")
    for epsilon in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="serve_epsilon: got"):
            Exploration(serve_epsilon=epsilon)
    for temperature in (0.0, -1.0, float("inf"), float("nan"), True):
        with pytest.raises(ValueError, match="teach_temperature: got"):
            Exploration(teach_temperature=temperature)
    with pytest.raises(ValueError, match="teach_kind: got 'noisy'; wanted greedy or softmax"):
        Exploration().changed("teach", kind="noisy")
    assert EXPLORATION_KINDS == ("greedy", "softmax")
