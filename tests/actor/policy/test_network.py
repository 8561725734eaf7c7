from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise_actor.policy import Network, NetworkSpec, initial_policy
from turnwise_actor.policy.domain import Domain

DOMAIN = Domain.from_mapping(
    {"name": "x", "state": {"text": {"size": 64}}, "actions": [{"id": "a"}, {"id": "b"}, {"id": "c"}]}
)
specs = st.builds(
    NetworkSpec,
    inputs=st.integers(1, 20),
    actions=st.integers(1, 6),
    hidden=st.lists(st.integers(1, 32), min_size=1, max_size=3).map(tuple),
    activation=st.sampled_from(["relu", "tanh", "silu"]),
    layer_norm=st.booleans(),
)


ACTIVATIONS: dict[str, Any] = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "silu": lambda z: z / (1 + np.exp(-z)),
}


def drawn(spec: NetworkSpec, seed: int = 0) -> dict[str, Any]:
    """Parameters about as large as in life."""
    rng = np.random.default_rng(seed)
    shapes = spec.parameter_shapes()
    return {name: (rng.normal(size=s) / np.sqrt(s[-1])).astype(np.float32) for name, s in shapes.items()}


def slow_q_values(spec: NetworkSpec, parameters: dict[str, Any], x: Any) -> Any:
    """The formula of NetworkSpec, one observation, in float64."""
    p = {name: value.astype(np.float64) for name, value in parameters.items()}
    for i in range(len(spec.hidden)):
        z = p[f"hidden.{i}.weight"] @ x + p[f"hidden.{i}.bias"]
        if spec.layer_norm:
            z = (z - z.mean()) / np.sqrt(z.var() + 1e-5) * p[f"norm.{i}.weight"] + p[f"norm.{i}.bias"]
        x = ACTIVATIONS[spec.activation](z)
    return p["head.weight"] @ x + p["head.bias"]


@given(specs, st.integers(0, 2**32 - 1))
def test_q_values_are_those_of_the_formula(spec: NetworkSpec, seed: int) -> None:
    parameters = drawn(spec, seed)
    obs = np.random.default_rng(seed).normal(size=(4, spec.inputs)).astype(np.float32)
    network = Network(spec, parameters)
    slow = [slow_q_values(spec, parameters, x.astype(np.float64)) for x in obs]
    # Small layers can have a variance near eps, where a norm multiplies rounding errors.
    np.testing.assert_allclose(network.q_values(obs), slow, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose([network.q_values(x) for x in obs], slow, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("hidden", [(256, 128), (1100, 64)], ids=["usual", "large"])
def test_real_sizes_are_right_to_1e_5_alone_and_in_a_batch(
    activation: Any, layer_norm: bool, hidden: tuple[int, ...]
) -> None:
    spec = NetworkSpec(1024, 10, hidden, activation, layer_norm)
    parameters = drawn(spec)
    obs = np.random.default_rng(1).normal(size=(8, 1024)).astype(np.float32)
    network = Network(spec, parameters)
    slow = [slow_q_values(spec, parameters, x.astype(np.float64)) for x in obs]
    single = np.stack([network.q_values(x) for x in obs])
    assert single.dtype == network.q_values(obs).dtype == np.float32
    np.testing.assert_allclose(single, slow, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(network.q_values(obs), slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs", [3, 128, 1041, 3000, 5000])
def test_an_answer_is_the_same_to_the_last_bit_whoever_asks_beside(inputs: int) -> None:
    spec = NetworkSpec(inputs, 64, (256, 100))
    network = Network(spec, drawn(spec))
    obs = np.random.default_rng(1).normal(size=(64, inputs)).astype(np.float32)
    alone = np.stack([network.q_values(x) for x in obs])
    for size in (2, 7, 8, 9, 33, 64):
        assert np.array_equal(network.q_values(obs[64 - size :]), alone[64 - size :])


def test_the_observation_is_not_changed() -> None:
    spec = NetworkSpec(3, 2, (4,))
    obs = np.ones(3, np.float32)
    Network(spec, drawn(spec)).q_values(obs)
    assert obs.tolist() == [1.0, 1.0, 1.0]


def test_huge_preactivations_stay_finite() -> None:
    spec = NetworkSpec(1, 1, (4,), "silu", layer_norm=False)
    parameters = {name: value * 1e6 for name, value in drawn(spec).items()}
    assert np.isfinite(Network(spec, parameters).q_values(np.array([1e6], np.float32))).all()


@pytest.mark.parametrize("shape", [(4,), (), (2, 4), (1, 1, 3)])
def test_an_observation_of_another_size_is_refused(shape: tuple[int, ...]) -> None:
    spec = NetworkSpec(3, 2, (4,))
    with pytest.raises(ValueError, match=r"obs: got shape .*; wanted \[3\] or \[B, 3\]"):
        Network(spec, drawn(spec)).q_values(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.bias": None}, r"missing \['head.bias'\]"),
        ({"head.scale": np.zeros(1, np.float32)}, r"unknown \['head.scale'\]"),
        ({"head.bias": np.zeros(3, np.float32)}, r"head.bias: got float32\[3\]; wanted float32\[2\]"),
        ({"head.bias": np.zeros(2)}, r"head.bias: got float64\[2\]; wanted float32\[2\]"),
        ({"head.bias": np.array([0, np.nan], np.float32)}, r"head.bias: got 1 NaN or infinite"),
    ],
)
def test_parameters_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    spec = NetworkSpec(3, 2, (4,))
    parameters = {name: value for name, value in {**drawn(spec), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        Network(spec, parameters)


def test_parameter_names_and_shapes_are_those_that_the_learner_shares() -> None:
    assert NetworkSpec(5, 2, (4, 3)).parameter_shapes() == {
        "hidden.0.weight": (4, 5),
        "hidden.0.bias": (4,),
        "norm.0.weight": (4,),
        "norm.0.bias": (4,),
        "hidden.1.weight": (3, 4),
        "hidden.1.bias": (3,),
        "norm.1.weight": (3,),
        "norm.1.bias": (3,),
        "head.weight": (2, 3),
        "head.bias": (2,),
    }
    assert not any("norm" in name for name in NetworkSpec(5, 2, layer_norm=False).parameter_shapes())
    assert NetworkSpec(5, 2, (4, 3)).parameter_count == 20 + 4 + 8 + 12 + 3 + 6 + 6 + 2


@given(specs)
def test_a_spec_survives_json(spec: NetworkSpec) -> None:
    assert NetworkSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "text",
    [
        *("", "3", "{}", '{"inputs": 0, "actions": 1}', '{"inputs": 1, "actions": 2, "hidden": []}'),
        *('{"inputs": 1.0, "actions": 2}', '{"inputs": 1, "actions": 2, "hidden": 3}'),
        *('{"inputs": 1, "actions": true}', '{"inputs": 1, "actions": 2, "activation": "gelu"}'),
        *('{"inputs": 1, "actions": 2, "layer_norm": 1}', '{"inputs": 1, "actions": 2, "dueling": true}'),
        '{"inputs": 1, "actions": 2, "activation": []}',
    ],
)
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        NetworkSpec.from_json(text)


def test_an_untaught_policy_values_every_action_at_0() -> None:
    policy = initial_policy(DOMAIN, seed=3)
    obs = np.random.default_rng(0).normal(size=(5, 65)).astype(np.float32)
    assert not policy.network.q_values(obs).any()
    assert str(policy.version) == "0.0"
    assert policy.fingerprint == DOMAIN.fingerprint


def test_hidden_layers_start_within_one_over_root_fan_in_and_by_the_seed() -> None:
    spec = NetworkSpec(64, 3, (400, 100))
    first, same, other = (initial_policy(DOMAIN, spec, seed=seed).parameters for seed in (1, 1, 2))
    for name, fan_in in (("hidden.0", 64), ("hidden.1", 400)):
        weight, bound = first[f"{name}.weight"], 1 / np.sqrt(fan_in)
        assert bound * 0.99 < np.abs(weight).max() <= bound
        assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
        assert np.abs(first[f"{name}.bias"]).max() <= bound
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not np.array_equal(first["hidden.0.weight"], other["hidden.0.weight"])
