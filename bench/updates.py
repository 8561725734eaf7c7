"""Gradient updates per CPU-second: Turnwise, the same in plain torch, and stock RLlib.

128 inputs, 64 actions, hidden [256, 256], Adam, double Q, prioritized replay, gamma 0.9, one torch thread.
Replay holds dialogues of eight turns, masks, and corrections on one turn in twenty.

Every side is measured in CPU time of the process, which neighbours on the machine do not disturb, in rounds
that take the sides in turn; a figure is the median of the rounds.

- b32, b256: `TurnwiseDQN.learn` on a full replay of 100,000 turns.
- torch: `reference.py`, on the same turns. The two losses are compared before anything is measured.
- stock: RLlib's DQN `training_step` with its PrioritizedEpisodeReplayBuffer, prefilled with 20,000 turns of
  the same shape, without masks and corrections, which it does not know. It cannot train without sampling:
  `training_intensity` makes that one step, of an environment that does nothing, to 25 updates.
- live8: as the live trainer does it: one turn and its lesson into replay, 8 updates, a policy file. The
  journal's own reading is no part of it.
- replay_1m_vs_10k: one turn in and one out to every update, at 1,000,000 turns and at 10,000; `figures` has
  the replay's own operations at both sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import logging
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from gymnasium.spaces import Box, Discrete
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from reference import Reference
from report import Report
from turnwise_actor.policy import Exploration, NetworkSpec
from turnwise_learner.trainer.algorithm import TurnwiseDQN, TurnwiseDQNConfig
from turnwise_learner.trainer.ray_cluster import start_ray
from turnwise_learner.trainer.replay import ReplayConfig, TurnReplay
from turnwise_learner.trainer.rl_module import TurnwiseDQNModule
from turnwise_learner.trainer.turns import Change, Correction, TurnRecord
from turnwise_learner.trainer.versions import VersionFolder

GOALS = {
    "b32_vs_torch": 0.90,
    "b256_vs_torch": 0.90,
    "b32_vs_stock": 6.0,
    "b256_vs_stock": 8.0,
    "live8_vs_torch": 0.7,
    "replay_1m_vs_10k": 0.85,
}
INPUTS, ACTIONS, HIDDEN, GAMMA = 128, 64, [256, 256], 0.9
DIALOGUE_TURNS = 8
STOCK_TURNS, STOCK_UPDATES = 20_000, 25
SPACES = {"observation_space": Box(-np.inf, np.inf, (INPUTS,), np.float32), "action_space": Discrete(ACTIONS)}


class Turns:
    """Random turns 0, 1, 2 …; as many as one likes, in little memory: observations overlap."""

    def __init__(self, count: int, inputs: int = INPUTS) -> None:
        rng = np.random.default_rng(1)
        noise = rng.standard_normal(count + inputs, np.float32)
        self.obs = np.lib.stride_tricks.sliding_window_view(noise, inputs)[:count]
        self.action = rng.integers(0, ACTIONS, count)
        self.reward = rng.uniform(-1, 1, count).astype(np.float32)
        self.corrected = rng.random(count) < 0.05
        self.last = np.arange(count) % DIALOGUE_TURNS == DIALOGUE_TURNS - 1
        masks = rng.random(count + ACTIONS) < 0.9
        self.allowed = np.lib.stride_tricks.sliding_window_view(masks, ACTIONS)[:count]

    def __len__(self) -> int:
        return len(self.action)

    def right_action(self, i: int) -> int:
        """What the correction of turn `i` says."""
        return int(self.action[i] + 1) % ACTIONS

    def record(self, i: int) -> TurnRecord:
        """Turn `i` as the assembler tells it, rated."""
        return TurnRecord(
            f"{i:032x}",
            self.obs[i],
            self.allowed[i],
            int(self.action[i]),
            float(self.reward[i]),
            successor="" if self.last[i] else f"{i + 1:032x}",
            terminated=bool(self.last[i]),
            rated_ms=1,
        )

    def correction_masks(self) -> np.ndarray:
        """<bool>[N, A]."""
        masks = np.zeros((len(self), ACTIONS), bool)
        rows = np.flatnonzero(self.corrected)
        masks[rows, (self.action[rows] + 1) % ACTIONS] = True
        return masks

    def replay_state(self, capacity: int) -> dict[str, Any]:
        """All turns, as `TurnReplay.set_state` takes them."""
        rows, n = np.arange(len(self), dtype=np.int32), len(self)
        masks = self.correction_masks()
        columns = {
            "obs": self.obs,
            "allowed": self.allowed,
            "action": self.action,
            "reward": self.reward,
            "child": np.where(self.last, -1, rows + 1),
            "parent": np.where(rows % DIALOGUE_TURNS == 0, -1, rows - 1),
            "terminated": self.last,
            "breaks_return": np.zeros(n, bool),
            "state_key": rows.astype(np.uint64),
            "rated_ms": np.ones(n, np.int64),
            "corrected": masks,
            "correction_open": masks,
            "decision_id": np.array([f"{i:032x}".encode() for i in range(n)]),
        }
        return {
            "columns": columns,
            "priorities": np.ones(n),
            "corrections": {
                int(i): [("ann", 1, self.right_action(i))] for i in np.flatnonzero(self.corrected)
            },
            "next_row": n % capacity,
            "newest_lesson": n - 2,
            "max_priority": 1.0,
            "evicted": 0,
            "amended_too_late": 0,
            "added": n,
            "rng": np.random.PCG64(0).state,
        }


# The sides


def build_ours(batch_size: int, turns: Turns) -> TurnwiseDQN:
    """TurnwiseDQN with a full replay."""
    config = TurnwiseDQNConfig()
    spec = NetworkSpec(INPUTS, ACTIONS, tuple(HIDDEN), "relu", layer_norm=False)
    module = RLModuleSpec(module_class=TurnwiseDQNModule, model_config={"network": spec.to_json()})
    config.environment(**SPACES).rl_module(rl_module_spec=module)
    config.framework("torch", torch_skip_nan_gradients=False)
    config.training(gamma=GAMMA, lr=1e-3, train_batch_size_per_learner=batch_size)
    config.replay = ReplayConfig(capacity_turns=len(turns))
    config.contrast_weight = 1.0
    config.updates_per_step = 8
    algorithm = TurnwiseDQN(config=config)
    algorithm.replay.set_state(turns.replay_state(len(turns)))
    return algorithm


def build_reference(like: TurnwiseDQN, turns: Turns) -> Reference:
    """Plain torch with the hyper-parameters, weights and turns of `like`."""
    config, n = like.config, len(turns)
    names = ("lr", "adam_epsilon", "grad_clip", "target_network_update_freq", "anchor_weight")
    names += ("contrast_weight", "untried_value", "correction_weight", "correction_value", "margin")
    hyper = {name: getattr(config, name) for name in names}
    hyper |= {name: getattr(config.replay, name) for name in ("alpha", "beta", "beta_updates")}
    hyper |= {name: getattr(config.replay, name) for name in ("priority_floor", "protected_share")}
    reference = Reference(INPUTS, ACTIONS, HIDDEN, n, **hyper)
    with torch.no_grad():
        module = like.module
        torch._foreach_copy_(reference.online, parameters_of(module.encoder, module.head))
        torch._foreach_copy_(reference.target, parameters_of(module._target_encoder, module._target_head))
    following, masks = np.where(turns.last, 0, np.arange(n) + 1), turns.correction_masks()
    following[-1] = 0
    columns = reference.columns
    columns["obs"][:], columns["next_obs"][:] = turns.obs, turns.obs[following]
    columns["allowed"][:], columns["next_allowed"][:] = turns.allowed, turns.allowed[following]
    columns["corrected"][:], columns["correction_open"][:] = masks, masks
    columns["action"][:], columns["reward"][:] = turns.action, turns.reward
    columns["discount"][:], columns["has_return"][:] = np.where(turns.last, 0, GAMMA), 1
    columns["judged"][:] = 1
    reference.protected[:], reference.size, reference.newest = turns.corrected, n, n - 2
    reference.prioritise(np.arange(n), np.ones(n))
    return reference


def parameters_of(encoder: torch.nn.Module, head: torch.nn.Module) -> list[torch.Tensor]:
    """Weight, bias, weight, bias … from the first layer to the head."""
    return [*encoder.parameters(), *head.parameters()]


class Nothing(gym.Env[np.ndarray, int]):
    """An environment that costs nothing: the same observation for ever."""

    def __init__(self, config: Any = None) -> None:
        self.observation_space, self.action_space = SPACES["observation_space"], SPACES["action_space"]
        self._obs = np.zeros(INPUTS, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A new dialogue."""
        return self._obs, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """The next turn."""
        return self._obs, 0.0, False, False, {}


def build_stock(batch_size: int, updates_a_step: int) -> DQN:
    """Stock DQN with a prefilled buffer."""
    config = (
        DQNConfig()
        .environment(Nothing, **SPACES)
        .env_runners(num_env_runners=0, rollout_fragment_length=1)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=HIDDEN, fcnet_activation="relu"))
        .training(
            gamma=GAMMA,
            lr=1e-3,
            train_batch_size_per_learner=batch_size,
            training_intensity=batch_size * updates_a_step,
            num_steps_sampled_before_learning_starts=0,
            double_q=True,
            dueling=False,
            replay_buffer_config={"type": "PrioritizedEpisodeReplayBuffer", "capacity": 2 * STOCK_TURNS},
        )
    )
    algorithm = config.build_algo()
    rng = np.random.default_rng(0)
    algorithm.local_replay_buffer.add([_episode(rng) for _ in range(STOCK_TURNS // DIALOGUE_TURNS)])
    return algorithm


def _episode(rng: np.random.Generator) -> SingleAgentEpisode:
    n = DIALOGUE_TURNS
    return SingleAgentEpisode(
        observations=list(rng.standard_normal((n + 1, INPUTS), np.float32)),
        actions=rng.integers(0, ACTIONS, n).tolist(),
        rewards=rng.uniform(-1, 1, n).tolist(),
        terminated=True,
        len_lookback_buffer=0,
    )


class Live:
    """One turn with its lesson, 8 updates, a policy file: the trainer's loop without journal and wire."""

    def __init__(self, algorithm: TurnwiseDQN, turns: Turns, folder: Path) -> None:
        self._algorithm, self._turns = algorithm, turns
        self._versions = VersionFolder(folder, "0" * 16, 1)
        self.journal_id, self._at = "j" * 32, 0
        algorithm.env_runner.attach(self)

    def read(self, cursor: int, wait_s: float, most: int) -> list[Change]:
        """The feed: the next dialogue turn, rated, under an id of its own."""
        self._at += 1
        record = self._turns.record(self._at % len(self._turns))
        fresh = dataclasses.replace(record, decision_id=f"live{self._at:028x}", terminated=True)
        return [Change(cursor + 1, (fresh,), lesson=True)]

    def run(self, updates: int) -> None:
        """Steps of 8 updates."""
        wanted = self._algorithm.learner.updates + updates
        while self._algorithm.learner.updates < wanted:
            self._algorithm.advance()
            self._versions.publish(self._algorithm, Exploration())


# Measuring

Side = tuple[Callable[[int], object], int]
"""(does that many updates, how many a round)"""


def cpu_s(work: Callable[[], object]) -> float:
    """CPU-seconds of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def rates(sides: dict[str, Side], rounds: int) -> dict[str, float]:
    """Updates per CPU-second of each side, the median of rounds that take the sides in turn.

    Args:
        sides: Those to compare.
        rounds: How many; one more goes first and is not counted.
    """
    seen: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, (run, updates) in sides.items():
            seen[name].append(updates / cpu_s(lambda run=run, updates=updates: run(updates)))
    return {name: statistics.median(found[1:]) for name, found in seen.items()}


def of_batch(batch_size: int, turns: Turns, updates: int, rounds: int) -> dict[str, float]:
    """Rates of all sides at one batch size; `updates` a round, a multiple of 50."""
    ours = build_ours(batch_size, turns)
    ours.learn(100)
    reference, stock = build_reference(ours, turns), build_stock(batch_size, STOCK_UPDATES)
    figures = {"loss_difference": loss_difference(ours, reference)}

    def learn(n: int) -> None:
        for _ in range(n // 50):
            ours.learn(50)

    def learn_plainly(n: int) -> None:
        for _ in range(n):
            reference.update(batch_size)

    sides: dict[str, Side] = {
        "ours": (learn, updates),
        "torch": (learn_plainly, updates),
        "stock": (lambda n: stock.training_step(), STOCK_UPDATES),
    }
    with tempfile.TemporaryDirectory() as folder:
        if batch_size == 32:
            sides["live8"] = (Live(build_ours(32, turns), turns, Path(folder)).run, updates)
        figures |= rates(sides, rounds)
    stock.stop()
    return figures


def loss_difference(ours: TurnwiseDQN, reference: Reference) -> float:
    """How far the two losses lie apart, relatively, on one batch.

    Raises:
        ValueError: They are different losses, so their speeds cannot be compared.
    """
    rows, columns = ours.replay.sample(256)
    batch = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}
    q = ours.module.compute_q_values(batch)["qf_preds"]
    (loss, _), (_, error) = ours.learner._losses(batch, q), ours.learner._slopes(batch, q)
    plain = {name: torch.from_numpy(column[rows]) for name, column in reference.columns.items()}
    plain_loss, plain_error = reference.losses(plain, torch.from_numpy(columns["weights"]))
    apart = abs(loss.item() / plain_loss.item() - 1)
    if apart > 1e-4 or not torch.allclose(error, plain_error, rtol=1e-3, atol=1e-5):
        raise ValueError(f"reference.py has another loss than torch_learner.py: {plain_loss}, {loss}")
    return apart


# Replay alone


class Evicting:
    """A full replay: every turn that comes in puts one out."""

    def __init__(self, count: int) -> None:
        self.turns, self._at = Turns(count), count
        self.algorithm = build_ours(32, self.turns)

    def fresh(self) -> TurnRecord:
        """A turn under an id of its own."""
        self._at += 1
        record = self.turns.record(self._at % len(self.turns))
        return dataclasses.replace(record, decision_id=f"{self._at:032x}", terminated=True)

    def run(self, updates: int) -> None:
        """As many turns as updates."""
        for _ in range(updates // 50):
            for _ in range(50):
                self.algorithm.replay.apply((self.fresh(),), lesson=True)
            self.algorithm.learn(50)

    def operations(self) -> dict[str, Callable[[], object]]:
        """One turn's or one batch's cost each."""
        replay = self.algorithm.replay
        rows, _ = replay.sample(32)
        errors = np.linspace(0, 1, 32)

        def add() -> TurnRecord:
            record = self.fresh()
            replay.apply((record,), lesson=True)
            return record

        def add_and_amend() -> None:
            replay.apply((dataclasses.replace(add(), obs=None, reward=-0.5, rated_ms=2),))

        def add_and_correct() -> None:
            # Taken back at once: live corrections would fill the replay.
            record = dataclasses.replace(add(), obs=None)
            replay.apply((dataclasses.replace(record, corrections=(Correction("bob", 1, 3),)),))
            replay.apply((record,))

        return {
            "add": add,
            "add_and_amend": add_and_amend,
            "add_and_correct": add_and_correct,
            "sample": lambda: replay.sample(32),
            "prioritise": lambda: replay.update_priorities(rows, errors),
        }


def of_sizes(sizes: dict[str, int], updates: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Rates with a full replay of each size, and microseconds of its operations."""
    full = {name: Evicting(count) for name, count in sizes.items()}
    speed = rates({name: (one.run, updates) for name, one in full.items()}, rounds)
    seen: dict[str, list[float]] = {}
    operations = {f"{k}_us_{name}": f for name, one in full.items() for k, f in one.operations().items()}
    for _ in range(rounds):
        for name, operation in operations.items():
            seen.setdefault(name, []).append(cpu_s(lambda f=operation: [f() for _ in range(50)]) / 50 * 1e6)
    return speed, {name: round(statistics.median(found), 1) for name, found in seen.items()}


def memory_ratio(count: int, inputs: int = 256) -> float:
    """Resident memory of a full replay / the size of its columns."""
    turns = Turns(count, inputs)
    state = turns.replay_state(count)
    gc.collect()
    before = _resident_bytes()
    replay = TurnReplay(inputs, ACTIONS, GAMMA, 1, ReplayConfig(capacity_turns=count))
    replay.set_state(state)
    gc.collect()
    grown = _resident_bytes() - before
    return grown / sum(getattr(replay, name).nbytes for name in replay._COLUMNS)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# The whole


def measure(short: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """All ratios and the figures that they are made of."""
    rounds, turns = (5, Turns(100_000)) if short else (15, Turns(100_000))
    figures: dict[str, Any] = {"memory_vs_columns": memory_ratio(100_000 if short else 1_000_000)}
    ratios: dict[str, float] = {}
    for batch_size, updates in ((32, 200), (256, 50)):
        found = figures[f"b{batch_size}"] = of_batch(batch_size, turns, updates, rounds)
        ratios[f"b{batch_size}_vs_torch"] = found["ours"] / found["torch"]
        ratios[f"b{batch_size}_vs_stock"] = found["ours"] / found["stock"]
    ratios["live8_vs_torch"] = figures["b32"]["live8"] / figures["b32"]["torch"]
    sizes = {"10k": 10_000, "1m": 1_000_000}
    figures["evicting"], figures["replay"] = of_sizes(sizes, 200, rounds)
    ratios["replay_1m_vs_10k"] = figures["evicting"]["1m"] / figures["evicting"]["10k"]
    return ratios, figures


def main() -> None:
    """Prints the report; its last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="within five minutes")
    short = parser.parse_args().short
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    start_ray()
    try:
        ratios, figures = measure(short)
    finally:
        ray.shutdown()
    ok = all(ratios[key] >= goal for key, goal in GOALS.items())
    print(Report("updates", ratios, GOALS, figures, ok).line())


if __name__ == "__main__":
    main()
