"""RLlib's place for experience: here it comes from the journal, not from an environment."""

from __future__ import annotations

import heapq
import itertools
import time
from collections import Counter
from typing import Any, Protocol

from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, WEIGHTS_SEQ_NO

from turnwise_learner.trainer.turns import Change

_JOURNAL = "journal"


class Feed(Protocol):
    """Where changes come from: the journal, read from a cursor."""

    journal_id: str

    def read(self, cursor: int, wait_s: float, most: int) -> list[Change]:
        """At most `most` changes after `cursor`, in journal order; waits up to `wait_s` for the first."""
        ...


class JournalEnvRunner(EnvRunner, Checkpointable):
    """Hands the journal's changes to the training step, each exactly once.

    The journal position is part of its state, so that a checkpoint's replay and its cursor always agree.
    Without a feed (a checkpoint opened elsewhere) it samples nothing and never blocks.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.worker_index = kwargs.get("worker_index", 0) or 0
        self.feed: Feed | None = None
        self.journal_id = ""
        self.cursor = 0
        self.counters: Counter[str] = Counter()
        self._held: list[tuple[int, int, Change]] = []
        self._order = itertools.count()
        self._sampled: Counter[str] = Counter()
        """What `metrics` have not been told yet: telling them costs as much as ten facts."""
        self._weights_seq_no = 0
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module = spec.build()

    def attach(self, feed: Feed) -> None:
        """Reads from `feed` from now on, at the present cursor.

        Raises:
            ValueError: The cursor belongs to another journal.
        """
        if self.journal_id and self.journal_id != feed.journal_id:
            raise ValueError(
                f"the checkpoint belongs to journal {self.journal_id}, this one is {feed.journal_id}"
            )
        self.feed, self.journal_id = feed, feed.journal_id

    def sample(self, *, wait_s: float = 0.0, most: int = 1024, **kwargs: Any) -> list[Change]:
        """Changes to be learned now; empty when nobody said anything within `wait_s` seconds.

        `most`: facts read from the journal.
        """
        if self.feed is None or self.config.in_evaluation or "num_episodes" in kwargs:
            return self._counted([])
        due_in_s = (self._held[0][0] - _now_ms()) / 1000 if self._held else wait_s
        changes = self.feed.read(self.cursor, max(0.0, min(wait_s, due_in_s)), most)
        if changes:
            self.cursor = changes[-1].cursor
        if not self._held and not any(change.due_ms for change in changes):
            return self._counted(changes)
        # Those held go first: what a dialogue's later facts say must not be overtaken by its earlier ones.
        for change in changes:
            heapq.heappush(self._held, (change.due_ms, next(self._order), change))
        now_ms = _now_ms()
        ready = []
        while self._held and self._held[0][0] <= now_ms:
            ready.append(heapq.heappop(self._held)[2])
        return self._counted(ready)

    @property
    def held(self) -> int:
        """Changes that wait for their window."""
        return len(self._held)

    @property
    def handed_out_through(self) -> int:
        """Journal position up to which every change was handed out."""
        return min((change.cursor - 1 for _, _, change in self._held), default=self.cursor)

    def _counted(self, changes: list[Change]) -> list[Change]:
        told = {"lessons": sum(change.lesson for change in changes)}
        for change in changes:
            for name, count in change.counters.items():
                told[name] = told.get(name, 0) + count
        self.counters.update(told)
        self._sampled.update(told)
        return changes

    # EnvRunner

    def get_spaces(self) -> dict[str, Any]:
        spaces = (self.config.observation_space, self.config.action_space)
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    def get_metrics(self) -> Any:
        # Zeros too: RLlib's loop peeks at these keys in every iteration.
        SingleAgentEnvRunner._increase_sampled_metrics(self, self._sampled["turns"], self._sampled["ended"])
        self._sampled.clear()
        return self.metrics.reduce()

    def assert_healthy(self) -> None:
        if self.module is None:
            raise RuntimeError("the env runner has no module")

    def stop(self) -> None:
        self.feed = None

    # Checkpointable

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {"config": self.config}

    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        state: dict[str, Any] = {
            NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime,
            _JOURNAL: {
                "journal_id": self.journal_id,
                "cursor": self.cursor,
                "counters": dict(self.counters),
                "held": [change for _, _, change in sorted(self._held)],
            },
        }
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state()
            state[WEIGHTS_SEQ_NO] = self._weights_seq_no
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]
        if _JOURNAL in state:
            journal = state[_JOURNAL]
            self.journal_id, self.cursor = journal["journal_id"], journal["cursor"]
            self.counters = Counter(journal["counters"])
            self._held = [(change.due_ms, next(self._order), change) for change in journal["held"]]
        if COMPONENT_RL_MODULE in state:
            weights = state[COMPONENT_RL_MODULE]
            self.module.set_state(weights.get(DEFAULT_MODULE_ID, weights))
            self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, 0)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
