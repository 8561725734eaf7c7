"""A pupil that is stock RLlib DQN: its own algorithm, buffer, runner and exploration, nothing of ours inside.

The person is a gymnasium environment of one-turn episodes: the observation is the encoded phrase, the reward
the rating. One `train()` of the algorithm asks one phrase and then makes its updates. Learning begins at the
first lesson (stock waits for 1,000), and accuracy is that of its greedy answers.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core import Columns
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from course import Course, Task, take
from live import QUICKSTART
from turnwise_actor.policy import Domain, Encoder, RawObservation
from turnwise_learner.trainer.ray_cluster import start_ray

TUNED: dict[str, Any] = {
    "lr": 1e-3,
    "epsilon": 0.5,
    "updates": 4,
    "dueling": False,
    "td_error_loss_fn": "mse",
    "hiddens": [128],
}
"""The best of those tried with `tune_stock.py`; `updates` are those a lesson. Half of the answers are drawn
at random for as long as it is taught: greedier settings get stuck, and examined are greedy answers."""
MOST_LESSONS = 1500
"""A seed that has not reached the threshold by then counts with so many lessons: a lower bound."""


def teach_stock(task: Task, threshold: float, settings: dict[str, Any] | None = None) -> Course:
    """The whole course, in this process."""
    if not ray.is_initialized():
        logging.getLogger("ray").setLevel(logging.ERROR)
        start_ray()
    pupil = StockPupil(task, settings or TUNED)
    try:
        return asyncio.run(take(task, pupil, threshold, MOST_LESSONS))
    finally:
        pupil.stop()


class Person(gym.Env[npt.NDArray[np.float32], np.int64]):
    """Says one phrase, rates the answer, and is gone."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (config["inputs"],), np.float32)
        self.action_space = gym.spaces.Discrete(config["actions"])
        self._pupil: StockPupil = config["pupil"][0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """The phrase to be asked."""
        return self._pupil.phrase_now(), {}

    def step(self, action: np.int64) -> Any:
        """The rating."""
        return self._pupil.phrase_now(), self._pupil.rate(int(action)), True, False, {}


class _Uncopied(list["StockPupil"]):
    """Holds the pupil through RLlib's deep copies of its configuration."""

    def __deepcopy__(self, memo: Any) -> "_Uncopied":
        return self


class StockPupil:
    """Asked by running one training iteration: RLlib acts and learns in one call."""

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        encoder = Encoder(Domain.load(QUICKSTART))
        raw = [RawObservation(text=phrase, slots={}, features=None) for phrase in task.phrases]
        self._task, self._observations = task, np.stack([encoder.encode(one) for one in raw])
        self._lesson, self._action, self._steps = 0, -1, 0
        torch.manual_seed(task.seed)
        self._algorithm = configuration(self, encoder.size, task, settings).build_algo()

    def phrase_now(self) -> npt.NDArray[np.float32]:
        """The observation of the present lesson."""
        observation: npt.NDArray[np.float32] = self._observations[self._task.order[self._lesson]]
        return observation

    def rate(self, action: int) -> float:
        """The rating of the present lesson, flipped where the task says so."""
        self._action, self._steps = action, self._steps + 1
        right = action == self._task.answers[self._task.order[self._lesson]]
        return -1.0 if right == self._task.flips[self._lesson] else 1.0

    async def ask(self, phrase: int) -> int:
        """Acts, and learns from the rating."""
        self._steps = 0
        self._algorithm.train()
        if self._steps != 1:
            raise RuntimeError(f"RLlib asked {self._steps} times in one lesson")
        return self._action

    async def learn(self, rating: float, correction: int | None) -> bool:
        """Has happened while asking."""
        self._lesson += 1
        return True

    async def examine(self) -> Sequence[int]:
        """Greedy answers to all phrases."""
        module = self._algorithm.learner_group._learner.module["default_policy"].unwrapped()
        with torch.no_grad():
            q = module.compute_q_values({Columns.OBS: torch.from_numpy(self._observations)})["qf_preds"]
        answers: list[int] = q.argmax(1).tolist()
        return answers

    def stop(self) -> None:
        """Ends the algorithm."""
        self._algorithm.stop()


def configuration(pupil: StockPupil, inputs: int, task: Task, settings: dict[str, Any]) -> DQNConfig:
    """Stock DQNConfig, from the first lesson on."""
    config = DQNConfig()
    env_config = {"inputs": inputs, "actions": task.actions, "pupil": _Uncopied([pupil])}
    config.environment(Person, env_config=env_config, disable_env_checking=True)
    config.framework("torch").debugging(seed=task.seed)
    config.env_runners(num_env_runners=0, batch_mode="complete_episodes", rollout_fragment_length=1)
    config.reporting(min_sample_timesteps_per_iteration=1, min_time_s_per_iteration=0)
    config.training(
        gamma=0.0,
        lr=settings["lr"],
        epsilon=settings["epsilon"],
        dueling=settings["dueling"],
        td_error_loss_fn=settings["td_error_loss_fn"],
        train_batch_size_per_learner=32,
        training_intensity=32.0 * settings["updates"],
        num_steps_sampled_before_learning_starts=0,
        replay_buffer_config={
            "type": "PrioritizedEpisodeReplayBuffer",
            "capacity": 50_000,
            "alpha": 0.6,
            "beta": 0.4,
        },
    )
    config.rl_module(
        model_config=DefaultModelConfig(fcnet_hiddens=settings["hiddens"], fcnet_activation="relu")
    )
    return config
