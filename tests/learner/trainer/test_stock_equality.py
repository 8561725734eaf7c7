"""Where stock DQN is right, ours is the same: no masks, no corrections, no anchor.

Of the same Q-values both make the same loss and the same gradient, bit for bit. Over many updates they are
equal but for rounding: stock multiplies observations and next observations as one matrix, and the order in
which BLAS adds up a row may depend on how many rows there are.
"""

from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from turnwise_actor.policy import NetworkSpec
from turnwise_learner.trainer.algorithm import TurnwiseDQNConfig
from turnwise_learner.trainer.rl_module import TurnwiseDQNModule
from turnwise_learner.trainer.torch_learner import TurnwiseTorchLearner

pytestmark = [pytest.mark.usefixtures("_ray"), pytest.mark.filterwarnings("ignore")]

D, A, B, HIDDEN, GAMMA = 24, 8, 32, [64, 48], 0.9
OBS = gym.spaces.Box(-np.inf, np.inf, (D,), np.float32)
ACT = gym.spaces.Discrete(A)


def configured(config: DQNConfig, loss: str) -> DQNConfig:
    config.environment(observation_space=OBS, action_space=ACT)
    config.training(
        gamma=GAMMA,
        lr=1e-3,
        grad_clip=None,
        double_q=True,
        dueling=False,
        td_error_loss_fn=loss,
        target_network_update_freq=10**9,
    )
    return config


def stock_learner(loss: str) -> Learner:
    config = configured(DQNConfig(), loss)
    config.rl_module(model_config=DefaultModelConfig(fcnet_hiddens=HIDDEN, fcnet_activation="relu"))
    learner = config.build_learner(env=None, spaces={DEFAULT_MODULE_ID: (OBS, ACT)})
    learner.build()
    # Ours is fused, which rounds otherwise: with the stock one, errors part by 1e-7 after a few updates.
    (adam,) = learner._named_optimizers.values()
    for group in adam.param_groups:
        group.update(fused=True, foreach=False)
    return learner


def our_learner(loss: str) -> TurnwiseTorchLearner:
    config = configured(TurnwiseDQNConfig(), loss)
    config.anchor_weight = 0.0
    spec = NetworkSpec(D, A, tuple(HIDDEN), "relu", layer_norm=False)
    module = RLModuleSpec(module_class=TurnwiseDQNModule, model_config={"network": spec.to_json()})
    config.rl_module(rl_module_spec=module)
    learner: TurnwiseTorchLearner = config.build_learner(env=None, spaces={DEFAULT_MODULE_ID: (OBS, ACT)})
    learner.build()
    return learner


def batches(count: int) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {
            "obs": rng.standard_normal((B, D), np.float32),
            "new_obs": rng.standard_normal((B, D), np.float32),
            "actions": rng.integers(0, A, B),
            "rewards": rng.uniform(-1, 1, B).astype(np.float32),
            "terminateds": rng.random(B) < 0.2,
            "n_step": rng.integers(1, 4, B).astype(np.float32),
            "weights": rng.uniform(0.3, 1, B).astype(np.float32),
        }


def as_ours(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same batch as our replay would hand it out."""
    steps, everything = torch.from_numpy(columns["n_step"]), np.ones((B, A), bool)
    return {
        **{name: columns[name] for name in ("obs", "new_obs", "actions", "rewards", "weights")},
        "discounts": np.where(columns["terminateds"], np.float32(0), (GAMMA**steps).numpy()),
        "has_return": np.ones(B, np.float32),
        "judged": np.ones(B, np.float32),
        "told": np.ones(B, np.float32),
        "rest": np.zeros(B, np.float32),
        "allowed": everything,
        "next_allowed": everything,
        "corrected": ~everything,
        "correction_open": ~everything,
    }


def shake(module: torch.nn.Module) -> None:
    """Random weights, target networks' too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)


def paired(one: torch.nn.Module, other: torch.nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Parameters of both, layer by layer: online network first, then the target network."""
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    assert all(mine.shape == theirs.shape for mine, theirs in pairs)
    return pairs


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_errors_and_weights_are_those_of_stock_dqn(loss: str) -> None:
    ours, stock = our_learner(loss), stock_learner(loss)
    own, theirs = ours.module[DEFAULT_MODULE_ID], stock.module[DEFAULT_MODULE_ID]
    shake(own)
    with torch.no_grad():
        for mine, their in paired(own, theirs):
            their.copy_(mine)
    head = own.head.weight.detach().clone()
    for columns in batches(20):
        ((_, error),) = ours.update_many([(np.arange(B), as_ours(columns))])
        results = stock.update(
            batch=MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=B),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0},
        )
        wanted = np.asarray(results[DEFAULT_MODULE_ID]["td_error"].peek()).ravel()
        np.testing.assert_allclose(error, wanted, rtol=1e-4, atol=1e-5)
    assert (own.head.weight - head).abs().max() > 1e-3
    for mine, their in paired(own, theirs):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_the_loss_and_its_gradient_are_those_of_stock_dqn_to_the_bit(loss: str) -> None:
    ours, stock = our_learner(loss), stock_learner(loss)
    module = ours.module[DEFAULT_MODULE_ID].unwrapped()
    shake(module)
    (columns,) = batches(1)
    q, found = {}, {}
    for name, learner, made in (("ours", ours, as_ours(columns)), ("stock", stock, columns)):
        batch = {key: torch.from_numpy(column) for key, column in made.items()}
        following = {"obs": batch["new_obs"]}
        q[name] = module.compute_q_values(batch)["qf_preds"].detach().requires_grad_()
        predictions = {
            "qf_preds": q[name],
            "qf_next_preds": module.compute_q_values(following)["qf_preds"],
            "qf_target_next_preds": module.forward_target(following)["qf_preds"],
        }
        found[name] = learner.compute_loss_for_module(
            module_id=DEFAULT_MODULE_ID, config=learner.config, batch=batch, fwd_out=predictions
        )
        found[name].backward()
    assert found["ours"].item() == found["stock"].item() > 0
    assert torch.equal(q["ours"].grad, q["stock"].grad)
    slopes, _ = ours._slopes({key: torch.from_numpy(c) for key, c in as_ours(columns).items()}, q["ours"])
    assert torch.equal(slopes, q["stock"].grad)
