"""TurnwiseDQN: RLlib's DQN, fed from the journal, learning at the pace of its teachers."""

from __future__ import annotations

import difflib
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    REPLAY_BUFFER_ADD_DATA_TIMER,
    TIMERS,
)

from turnwise_actor.policy import (
    Domain,
    DomainError,
    Encoder,
    Exploration,
    NetworkSpec,
    Problem,
    default_spec,
)
from turnwise_learner.trainer.env_runner import JournalEnvRunner
from turnwise_learner.trainer.pacing import Pacer
from turnwise_learner.trainer.remote_learners import RemoteLearners
from turnwise_learner.trainer.replay import ReplayConfig, TurnReplay
from turnwise_learner.trainer.rl_module import TurnwiseDQNModule
from turnwise_learner.trainer.torch_learner import TurnwiseTorchLearner

COMPONENT_REPLAY = "replay"
PACING = "pacing"
EXPLORATION = "exploration"

_STEPS_A_RESULT = 50
_FACTS_BESIDE_UPDATES = 256
"""Facts taken in between two bursts of updates: about half as much work as the updates. More, and a busy
journal would leave little time to learn from it; fewer, and it would run away."""

_NAMES = {"batch_size": "train_batch_size_per_learner"}
_NETWORK_FIELDS = {"hidden", "activation", "layer_norm"}


class TurnwiseDQNConfig(DQNConfig):
    """DQNConfig plus what teaching by people needs. `for_domain` is the usual way to make one."""

    def __init__(self, algo_class: type[DQN] | None = None) -> None:
        super().__init__(algo_class=algo_class or TurnwiseDQN)
        self.domain_json = ""
        self.updates_per_lesson = 8.0
        """Gradient updates that a lesson grants; more learns each lesson harder, fewer answers sooner."""
        self.updates_per_unrated_turn = 0.0
        """The same for a turn met without a rating; for_domain makes it 1 at gamma > 0."""
        self.updates_per_step = 16
        """Most updates between two looks at the journal."""
        self.max_updates_owed = 10_000
        """Debt beyond which lessons are kept in replay but get no updates of their own."""
        self.anchor_weight = 0.2
        """Pull of untaken actions to the value of the untried; see torch_learner."""
        self.contrast_weight = 0.0
        """How firmly what was said holds taken and untaken actions apart; for_domain: 1 at gamma > 0."""
        self.untried_value = 0.0
        self.correction_weight = 1.0
        self.correction_value = 1.0
        """Scaled reward that a correction stands for until the action is rated itself."""
        self.margin = 0.8
        """How far a corrected action must lie above the others (arXiv:1704.03732)."""
        self.replay = ReplayConfig()
        self.lr = 2e-3
        self.adam_epsilon = 1e-8
        self.grad_clip = 10.0
        self.train_batch_size_per_learner = 32
        self.target_network_update_freq = 50
        """In gradient updates, not in environment steps."""
        self.td_error_loss_fn = "mse"
        self.double_q = True
        self.dueling = False
        self.num_atoms = 1
        self.noisy = False
        self.gamma = 0.0
        self.n_step = 1
        self.num_env_runners = 0
        self.env_runner_cls = JournalEnvRunner
        self.num_steps_sampled_before_learning_starts = 0
        self.min_sample_timesteps_per_iteration = 0
        self.min_time_s_per_iteration = 0
        self.store_buffer_in_checkpoints = True
        # Ours is `self.replay`; without this RLlib allocates one of its own as well.
        self.replay_buffer_config = {"type": "PrioritizedEpisodeReplayBuffer", "no_local_replay_buffer": True}

    @classmethod
    def for_domain(cls, domain: Domain) -> TurnwiseDQNConfig:
        """The configuration of a domain; its `learning:` may name any field of this class.

        Raises:
            DomainError: `learning` names a field that does not exist, or gives it a value it cannot take.
        """
        config = cls()
        spec = default_spec(domain)
        config.domain_json = domain.to_json()
        config.updates_per_unrated_turn = 0.0 if domain.gamma == 0 else 1.0
        config.contrast_weight = 0.0 if domain.gamma == 0 else 1.0
        config.untried_value = domain.untried_value
        config.correction_value = domain.scale_reward(domain.rewards.correction)
        config._take_learning_fields(domain)
        config.environment(
            observation_space=gym.spaces.Box(-np.inf, np.inf, (Encoder(domain).size,), np.float32),
            action_space=gym.spaces.Discrete(len(domain.action_ids)),
        )
        config.rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=TurnwiseDQNModule, model_config={"network": spec.to_json()}
            )
        )
        config.framework("torch", torch_skip_nan_gradients=False)
        return config

    def _take_learning_fields(self, domain: Domain) -> None:
        problems = []
        for name, value in domain.learning.items():
            if name in _NETWORK_FIELDS:
                continue
            try:
                self._take_learning_field(name, value)
            except (AttributeError, TypeError, ValueError) as error:
                problems.append(Problem(f"learning.{name}", repr(value), str(error)))
        if problems:
            raise DomainError(problems, domain.name)

    def _take_learning_field(self, name: str, value: Any) -> None:
        field = _NAMES.get(name, name)
        if name.startswith("_") or not hasattr(self, field) or callable(getattr(self, field)):
            known = (*_NAMES, *_NETWORK_FIELDS, *(n for n in vars(self) if not n.startswith("_")))
            near = difflib.get_close_matches(name, known, 1)
            raise AttributeError("a field of TurnwiseDQNConfig" + (f" ({near[0]}?)" if near else ""))
        present = getattr(self, field)
        if field == "replay":
            value = ReplayConfig(**value)
        elif isinstance(present, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif isinstance(present, bool | int | float | str) and type(value) is not type(present):
            raise TypeError(f"a value like {present!r}")
        setattr(self, field, value)

    def validate(self) -> None:
        """Refuses what is known to teach badly, saying why."""
        super().validate()
        for field, wanted, why in (
            ("dueling", False, "its mean row ties untried actions to tried ones"),
            ("noisy", False, "the probability of its choice has no closed form"),
            ("num_atoms", 1, "the anchor is defined on expected values"),
        ):
            if getattr(self, field) != wanted:
                self._value_error(
                    f"{field}={getattr(self, field)} is not offered: {why}. Set {field}={wanted}."
                )
        if self.train_batch_size_per_learner % max(self.num_learners, 1):
            self._value_error(
                f"batch_size is {self.train_batch_size_per_learner}; wanted a multiple of num_learners, "
                f"{self.num_learners}: each learner takes an equal part of a batch"
            )
        if isinstance(self.n_step, tuple | list) or self.n_step < 1:
            self._value_error(f"n_step is {self.n_step!r}; wanted a whole number from 1 up")

    def get_default_learner_class(self) -> Any:
        return TurnwiseTorchLearner

    @property
    def network_spec(self) -> NetworkSpec:
        """The network that this configuration trains."""
        return NetworkSpec.from_json(self.rl_module_spec.model_config["network"])

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {**DefaultModelConfig().__dict__, **super()._model_config_auto_includes}


class TurnwiseDQN(DQN):
    """DQN whose experience comes from a journal of people's dialogues.

    `train()` takes in what the journal has, does at most `updates_per_step` of the updates owed, and returns
    at once when nobody said anything. `learn(updates)` trains on what replay holds, owed or not.
    """

    @classmethod
    def get_default_config(cls) -> TurnwiseDQNConfig:
        return TurnwiseDQNConfig()

    def setup(self, config: Any) -> None:
        super().setup(config)
        self.replay = TurnReplay(
            inputs=self.config.observation_space.shape[0],
            actions=int(self.config.action_space.n),
            gamma=self.config.gamma,
            n_step=self.config.n_step,
            config=self.config.replay,
        )
        self.pacer = Pacer(
            self.config.updates_per_lesson,
            self.config.updates_per_unrated_turn,
            self.config.max_updates_owed,
        )
        remote = self.config.num_learners > 0
        self._remote = RemoteLearners(self.learner_group, self.env_runner.module) if remote else None
        self.idle_wait_s = 0.0
        """How long a training step waits for the journal when no update is owed."""
        self.paused = False
        self._saving = False
        self._steps = 0
        self._reported_updates = 0
        self.exploration = Exploration()
        """What actors explore; kept here so that it survives restarts."""

    @property
    def learner(self) -> TurnwiseTorchLearner | RemoteLearners:
        """The local learner, or with `num_learners` all the remote ones."""
        return self._remote or self.learner_group._learner

    @property
    def module(self) -> TurnwiseDQNModule:
        """The online network in training."""
        return self.learner.module[DEFAULT_MODULE_ID].unwrapped()

    def training_step(self) -> None:
        """Journal -> replay -> updates owed. Never blocks on silence, unlike the stock step."""
        self._take_in_and_learn()
        self.metrics.aggregate([self.env_runner.get_metrics()], key=ENV_RUNNER_RESULTS)
        if self.learner.updates > self._reported_updates:
            self._reported_updates = self.learner.updates
            self.learner.log_losses()
            self.metrics.aggregate([self.learner.metrics.reduce()], key=LEARNER_RESULTS)

    def _take_in_and_learn(self) -> None:
        owed = 0 if self.paused else self.pacer.owed
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            if owed:
                changes = self.env_runner.sample(most=_FACTS_BESIDE_UPDATES)
            else:
                changes = self.env_runner.sample(wait_s=self.idle_wait_s)
        with self.metrics.log_time((TIMERS, REPLAY_BUFFER_ADD_DATA_TIMER)):
            through = self.env_runner.handed_out_through if changes else 0
            self.replay.apply_all(changes)
            self.pacer.grant_all(changes, through)
        if self.paused:
            return
        if not self.replay.learnable:
            if not self.replay.awaits_next_state:
                self.pacer.forgive()
            return
        owed = min(self.pacer.owed, self.config.updates_per_step)
        self.learn(owed)
        self.pacer.spend(owed)

    def advance(self) -> None:
        """`train()` for a loop that does not read RLlib's results.

        They cost more than an update, so that they are compiled only every 50th time: between, they pile up.
        """
        self._steps += 1
        if self._steps % _STEPS_A_RESULT == 0:
            self.train()
        else:
            self._take_in_and_learn()

    def learn(self, updates: int) -> None:
        """Gradient updates on batches drawn from replay.

        Raises:
            ValueError: Replay holds nothing to learn from.
        """
        if updates <= 0:
            return
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            for rows, errors in self.learner.update_many(self._batches(updates)):
                self.replay.update_priorities(rows, errors)

    def _batches(self, count: int) -> Any:
        for _ in range(count):
            yield self.replay.sample(self.config.train_batch_size_per_learner, self.learner.updates)

    # Checkpointable

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """RLlib's own, and the replay: stock DQN loses its buffer on restore without a word."""
        return [*super().get_checkpointable_components(), (COMPONENT_REPLAY, self.replay)]

    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COMPONENT_REPLAY, components, not_components):
            replay = self.replay
            state[COMPONENT_REPLAY] = replay.present_state() if self._saving else replay.get_state()
        if self._check_component(PACING, components, not_components):
            state[PACING] = self.pacer.get_state()
        if self._check_component(EXPLORATION, components, not_components):
            state[EXPLORATION] = asdict(self.exploration)
        return state

    def save_to_path(self, *args: Any, **kwargs: Any) -> str:
        """As RLlib's, which writes the state that it asks for at once: of replay no copy is made."""
        self._saving = True
        try:
            return str(super().save_to_path(*args, **kwargs))
        finally:
            self._saving = False

    def restore_from_path(self, *args: Any, **kwargs: Any) -> None:
        super().restore_from_path(*args, **kwargs)
        self.restored_learners()

    def restored_learners(self) -> None:
        """To be called after the learners alone were restored."""
        if self._remote is not None:
            self._remote.read()

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.restored_learners()
        if COMPONENT_REPLAY in state:
            self.replay.set_state(state[COMPONENT_REPLAY])
        if PACING in state:
            self.pacer.set_state(state[PACING])
        if EXPLORATION in state:
            self.exploration = Exploration(**state[EXPLORATION])
