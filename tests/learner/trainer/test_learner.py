"""The losses against a slow version written from the formulas in torch_learner's docstring."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.learner.trainer.facts import make_domain
from turnwise_actor.policy import Network
from turnwise_learner.trainer.algorithm import TurnwiseDQN, TurnwiseDQNConfig

pytestmark = [
    pytest.mark.usefixtures("_ray"),
    pytest.mark.filterwarnings("ignore"),
]

A = 3


def build(**learning: Any) -> TurnwiseDQN:
    return TurnwiseDQN(config=TurnwiseDQNConfig.for_domain(make_domain(hidden=[16], **learning)))


def shaken(algorithm: TurnwiseDQN) -> TurnwiseDQN:
    """Random weights everywhere, the target network's different from the online one's."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in algorithm.module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return algorithm


def batch(algorithm: TurnwiseDQN, size: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    inputs = algorithm.module.spec.inputs
    allowed, next_allowed = (rng.random((size, A)) < 0.7 for _ in range(2))
    actions = rng.integers(0, A, size)
    allowed[np.arange(size), actions] = True
    next_allowed[0] = False
    corrected = np.zeros((size, A), bool)
    corrected[1, 2] = corrected[2, [0, 1]] = True
    corrected[1, actions[1]] &= actions[1] == 2
    correction_open = corrected.copy()
    correction_open[2, 1] = False
    discounts = np.array([0.0, 0.9, 0.81, 0.0, 0.9, 0.9], np.float32)[:size]
    columns = {
        "obs": rng.standard_normal((size, inputs)).astype(np.float32),
        "new_obs": rng.standard_normal((size, inputs)).astype(np.float32),
        "actions": actions,
        "rewards": rng.uniform(-1, 1, size).astype(np.float32),
        "discounts": discounts,
        "has_return": np.array([1, 0, 1, 1, 1, 1], np.float32)[:size],
        "judged": np.array([1, 1, 0, 1, 0, 0], np.float32)[:size],
        "told": np.array([1, 0, 1, 1, 0, 1], np.float32)[:size],
        "rest": np.array([0, 0, 0.5, -0.3, 0, 0.2], np.float32)[:size],
        "weights": rng.uniform(0.5, 1, size).astype(np.float32),
        "allowed": allowed,
        "next_allowed": next_allowed,
        "corrected": corrected,
        "correction_open": correction_open,
    }
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def slow_loss(algorithm: TurnwiseDQN, b: dict[str, torch.Tensor]) -> tuple[float, list[float]]:
    module, config = algorithm.module, algorithm.config
    q = module.compute_q_values({"obs": b["obs"]})["qf_preds"].detach().numpy()
    q_next = module.compute_q_values({"obs": b["new_obs"]})["qf_preds"].detach().numpy()
    q_target = module.forward_target({"obs": b["new_obs"]})["qf_preds"].detach().numpy()
    n = {k: v.numpy() for k, v in b.items()}
    total, errors = 0.0, []
    rows = len(q)
    for i in range(rows):
        boot = 0.0
        if n["discounts"][i]:
            choices = [a for a in range(A) if n["next_allowed"][i, a]]
            boot = n["discounts"][i] * q_target[i, max(choices, key=lambda a: q_next[i, a])]
        taken = n["actions"][i]
        e = q[i, taken] - n["rewards"][i] - boot if n["has_return"][i] else 0.0
        error = abs(e)
        total += n["weights"][i] * error**2 / rows
        future = n["rest"][i] + boot if n["judged"][i] else 0.0
        free = [a for a in range(A) if n["allowed"][i, a] and a != taken and not n["corrected"][i, a]]
        if free:
            untried = [q[i, a] - future - config.untried_value for a in free]
            total += config.anchor_weight * np.mean([u**2 for u in untried]) / rows
            if n["told"][i]:
                total += config.contrast_weight * np.mean([(e - u) ** 2 for u in untried]) / rows
        live = [a for a in range(A) if n["corrected"][i, a]]
        if live:
            able = [a for a in range(A) if n["allowed"][i, a] or a in live]
            rival = max(q[i, a] + (0 if a in live else config.margin) for a in able)
            margin = rival - max(q[i, a] for a in live)
            gaps = [q[i, a] - future - config.correction_value for a in live if n["correction_open"][i, a]]
            total += config.correction_weight * (sum(g * g for g in gaps) + margin) / rows
            error = max([error, margin, *map(abs, gaps)])
        errors.append(error)
    return total, errors


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_the_formula(seed: int) -> None:
    algorithm = shaken(build(gamma=0.9))
    b = batch(algorithm, seed=seed)
    q = algorithm.module.compute_q_values({"obs": b["obs"]})["qf_preds"].detach()
    loss, _ = algorithm.learner._losses(b, q)
    _, error = algorithm.learner._slopes(b, q)
    wanted, wanted_errors = slow_loss(algorithm, b)
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(error.numpy(), wanted_errors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss_fn", ["mse", "huber"])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_slopes_are_the_derivative_of_the_loss(loss_fn: str, ties: bool, seed: int) -> None:
    algorithm = build(gamma=0.9, td_error_loss_fn=loss_fn)
    if not ties:
        shaken(algorithm)
    b = batch(algorithm, seed=seed)
    q = algorithm.module.compute_q_values({"obs": b["obs"]})["qf_preds"].detach().requires_grad_()
    loss, _ = algorithm.learner._losses(b, q)
    loss.backward()
    slopes, _ = algorithm.learner._slopes(b, q.detach())
    torch.testing.assert_close(slopes, q.grad, rtol=1e-5, atol=1e-7)


def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    algorithm = shaken(build(gamma=0.9))
    b = batch(algorithm)
    b["rewards"][0] = torch.nan
    before = {k: v.clone() for k, v in algorithm.module.state_dict().items()}
    error = algorithm.learner._gradient_step(b)
    assert np.isnan(error).all()
    assert algorithm.learner.skipped_batches == 1
    assert algorithm.learner.updates == 0
    assert all(torch.equal(v, before[k]) for k, v in algorithm.module.state_dict().items())


def test_the_target_network_follows_a_clock_of_updates() -> None:
    algorithm = shaken(build(gamma=0.9, target_network_update_freq=3))
    b = batch(algorithm)
    target = algorithm.module._target_head.weight
    frozen = target.clone()
    for update in range(1, 4):
        algorithm.learner._gradient_step(b)
        assert torch.equal(target, frozen) == (update < 3)
    assert torch.equal(target, algorithm.module.head.weight)


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("hidden", [[16], [24, 16]])
def test_the_actors_numpy_network_is_the_learners_torch_network(
    activation: str, layer_norm: bool, hidden: list[int]
) -> None:
    domain = make_domain(hidden=hidden, activation=activation, layer_norm=layer_norm)
    algorithm = shaken(TurnwiseDQN(config=TurnwiseDQNConfig.for_domain(domain)))
    network = Network(algorithm.module.spec, algorithm.module.policy_parameters())
    obs = np.random.default_rng(0).standard_normal((50, network.spec.inputs)).astype(np.float32)
    wanted = algorithm.module.compute_q_values({"obs": torch.from_numpy(obs)})["qf_preds"].detach().numpy()
    np.testing.assert_allclose(network.q_values(obs), wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.q_values(obs[0]), wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"), [("dueling", True), ("noisy", True), ("num_atoms", 51), ("n_step", 0)]
)
def test_what_teaches_badly_is_refused(field: str, value: object) -> None:
    config = TurnwiseDQNConfig.for_domain(make_domain())
    setattr(config, field, value)
    with pytest.raises(ValueError, match=field):
        config.validate()


def test_an_unknown_learning_field_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"learning\.anchor_wieght.*anchor_weight"):
        TurnwiseDQNConfig.for_domain(make_domain(anchor_wieght=1.0))


def test_a_learning_field_of_the_wrong_type_is_named() -> None:
    with pytest.raises(ValueError, match=r"learning\.lr.*'fast'"):
        TurnwiseDQNConfig.for_domain(make_domain(lr="fast"))


def test_moments_decay_to_zero_and_not_to_numbers_that_slow_a_cpu_down() -> None:
    algorithm = shaken(build())
    learner = algorithm.learner
    (optimizer,) = learner._named_optimizers.values()
    columns = {name: column.numpy() for name, column in batch(algorithm).items()}
    rows = np.arange(6)
    list(learner.update_many([(rows, columns)]))
    (state, *_) = optimizer.state.values()
    state["exp_avg"].fill_(1e-37)
    columns |= {"weights": np.zeros(6, np.float32), "obs": np.zeros_like(columns["obs"])}
    list(learner.update_many([(rows, columns)] * 40))
    moments = state["exp_avg"].abs()
    assert not ((moments > 0) & (moments < torch.finfo(torch.float32).tiny)).any()
    assert torch.tensor(1e-38) * 1e-3 > 0, "only there"
    algorithm.stop()
