"""Prioritized replay of turns: flat arrays, row links, amendments at any age.

A row is one decision. Its next state is its successor's row, so n-step returns are made when sampled, from
what is true then, and an observation is stored once. Letters: N rows, B batch, D inputs, A actions.

Life of a row: inserted when its decision is first told (worth nothing to learn: priority 0), given priority
when there is something to learn from it, amended and raised to the highest priority whenever that changes,
evicted oldest first when the arrays are full; rows with live corrections are never evicted.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, cast

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.utils.checkpoints import Checkpointable

from turnwise_learner.trainer import rl_module, torch_learner
from turnwise_learner.trainer.decision_rows import DecisionRows
from turnwise_learner.trainer.sum_tree import SumTree
from turnwise_learner.trainer.turns import Change, Correction, TurnRecord

_ID_BYTES = 40

_Rating = tuple[int, float, int]
"""(-when, -reward, row): the newest is the smallest"""


@dataclass(frozen=True)
class ReplayConfig:
    """How turns are kept and drawn."""

    capacity_turns: int = 100_000
    """Rows; a row costs 4 bytes an input, 3 an action, and 150. Memory is used only as rows come."""
    obs_dtype: Literal["float32", "float16"] = "float32"
    """How observations are kept; float16 halves them and keeps three decimal digits, up to 65,504."""
    alpha: float = 0.6
    """Priority exponent, 0 uniform (arXiv:1511.05952, eq. 1)."""
    beta: float = 0.4
    """Importance-weight exponent at the first update; rises to 1."""
    beta_updates: int = 100_000
    """Updates over which beta rises to 1."""
    priority_floor: float = 0.01
    """Added to every |TD error|, so that nothing learned is never seen again."""
    protected_share: float = 0.25
    """Part of every batch drawn among corrected turns while there are any."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("alpha", 0, 1), ("beta", 0, 1), ("protected_share", 0, 0.9)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; wanted {low} to {high}")
        if self.obs_dtype not in ("float32", "float16"):
            raise ValueError(f"obs_dtype is {self.obs_dtype!r}; wanted float32 or float16")
        if self.capacity_turns < 64:
            raise ValueError(f"capacity_turns is {self.capacity_turns}; wanted 64 or more")


class TurnReplay(Checkpointable):
    """See the module. Changed by the training loop alone, between updates, in journal order."""

    _COLUMNS = (
        "obs",
        "allowed",
        "action",
        "reward",
        "child",
        "parent",
        "terminated",
        "breaks_return",
        "state_key",
        "rated_ms",
        "corrected",
        "correction_open",
        "decision_id",
    )

    def __init__(
        self, inputs: int, actions: int, gamma: float, n_step: int, config: ReplayConfig | None = None
    ) -> None:
        self.config = config or ReplayConfig()
        self._ctor = (inputs, actions, gamma, n_step, self.config)
        self.gamma, self.n_step = gamma, n_step
        n = self.config.capacity_turns
        self.obs = np.zeros((n, inputs), self.config.obs_dtype)
        self.allowed = np.zeros((n, actions), bool)
        self.action = np.full(n, -1, np.int32)
        self.reward = np.full(n, np.nan, np.float32)
        self.child = np.full(n, -1, np.int32)
        self.parent = np.full(n, -1, np.int32)
        self.terminated = np.zeros(n, bool)
        self.breaks_return = np.zeros(n, bool)
        self.state_key = np.zeros(n, np.uint64)
        self.rated_ms = np.zeros(n, np.int64)
        self.corrected = np.zeros((n, actions), bool)
        self.correction_open = np.zeros((n, actions), bool)
        self.decision_id = np.zeros(n, f"S{_ID_BYTES}")
        # One cell at a time, memory is read and written in a third of the time that an array takes.
        self._action, self._reward = self.action.data, cast("memoryview[float]", self.reward.data)
        self._child, self._parent = self.child.data, self.parent.data
        self._terminated, self._breaks_return = self.terminated.data, self.breaks_return.data
        self._state_key, self._rated_ms = self.state_key.data, self.rated_ms.data
        self._corrections: dict[int, tuple[Correction, ...]] = {}
        self._tree = SumTree(n)
        self._protected = SumTree(n)
        self._leaves = self._tree.leaves.data
        self._seen: dict[int, np.ndarray] = {}
        self._allowed: dict[int, np.ndarray] = {}
        """Observations and masks that wait to be written, by row."""
        self._touched: set[int] = set()
        """Rows whose priorities are to be worked out."""
        self._fresh: set[int] = set()
        """Those of them that have had something new to learn, or nothing for a moment."""
        self._rows = DecisionRows(self.decision_id)
        self._corrected_states: dict[int, set[int]] = {}
        self._ratings: dict[int, dict[int, list[_Rating]]] = {}
        self._next_row = 0
        self._newest_lesson = -1
        self._max_priority = 1.0
        self.evicted = 0
        self.amended_too_late = 0
        self.added = 0
        self.rng = np.random.Generator(np.random.PCG64(self.config.seed))

    def __len__(self) -> int:
        """Rows in use."""
        return len(self._rows)

    @property
    def learnable(self) -> bool:
        """Whether there is anything to draw."""
        return self._tree.total > 0

    @property
    def awaits_next_state(self) -> bool:
        """Whether a turn has a reward and will be learnable once its next state or its end is known."""
        return bool((np.isfinite(self.reward) & (self.action >= 0)).any())

    def priority(self, decision_id: str) -> float:
        """The priority (already raised to alpha) of a decision; 0: nothing to learn from it.

        Raises:
            KeyError: It is not in replay.
        """
        return float(self._tree.leaves[self._rows[decision_id]])

    def __contains__(self, decision_id: str) -> bool:
        return decision_id in self._rows

    # Changing

    def apply(self, records: Sequence[TurnRecord], lesson: bool = False) -> None:
        """Inserts or amends the turns of one change; the successor of one may come after it."""
        self._take(records, lesson)
        self._write_states()
        self._prioritise()

    def apply_all(self, changes: Iterable[Change]) -> None:
        """As `apply` of one after the other, but states are written and priorities worked out once."""
        for change in changes:
            if change.records:
                self._take(change.records, change.lesson)
        self._write_states()
        self._prioritise()

    def _take(self, records: Sequence[TurnRecord], lesson: bool) -> None:
        evicted = self.evicted
        placed = []
        for record in records:
            row = self._row_of(record)
            if row >= 0:
                placed.append((row, record))
        if self.evicted > evicted and len(records) > 1:
            # One of them may have been evicted to make room for another.
            placed = [(row, record) for row, record in placed if self._rows.find(record.decision_id) == row]
        for row, record in placed:
            self._write(row, record)
        for row, record in placed:
            if record.successor or self._child[row] >= 0:
                self._link(row, record.successor)
        if self._corrected_states:
            self._settle({self._state_key[row] for row, _ in placed})
        for row, _ in placed:
            self._touch(row)
        if lesson:
            judged = (row for row, _ in placed if self._is_learnable(row))
            self._newest_lesson = next(judged, self._newest_lesson)

    def _row_of(self, record: TurnRecord) -> int:
        row = self._rows.find(record.decision_id)
        if row >= 0:
            return row
        if record.obs is None:
            self.amended_too_late += 1
            return -1
        row = self._free_row()
        self._rows.add(record.decision_id, row)
        self._seen[row] = record.obs
        self._state_key[row] = state_key(record.obs, record.allowed)
        self.added += 1
        return row

    def _write_states(self) -> None:
        """Writes what was seen and allowed in the rows of a batch, of which nothing is read before."""
        if self._seen:
            obs = np.concatenate(list(self._seen.values())).reshape(len(self._seen), -1)
            obs = obs if self.config.obs_dtype == "float32" else _within_float16(obs)
            self.obs[np.fromiter(self._seen, np.int64, len(self._seen))] = obs
            self._seen.clear()
        if self._allowed:
            allowed = np.concatenate(list(self._allowed.values())).reshape(len(self._allowed), -1)
            self.allowed[np.fromiter(self._allowed, np.int64, len(self._allowed))] = allowed
            self._allowed.clear()

    def _write(self, row: int, record: TurnRecord) -> None:
        """Stores what the record says."""
        before = self._value_of(row) if self._leaves[row] else None
        self._allowed[row] = record.allowed
        self._action[row] = record.action
        self._reward[row] = math.nan if record.reward is None else record.reward
        self._terminated[row] = record.terminated
        self._breaks_return[row] = record.breaks_return
        self._rated_ms[row] = record.rated_ms
        if record.corrections:
            self._corrections[row] = record.corrections
            self._corrected_states.setdefault(self._state_key[row], set()).add(row)
        elif row in self._corrections:
            self._forget_corrections(row)
        if self._ratings:
            self._note_rating(self._state_key[row], row)
        if before is not None and self._value_of(row) != before:
            self._fresh.add(row)

    def _value_of(self, row: int) -> tuple[Any, ...]:
        """What is learned from a row, but for its next state."""
        reward = self._reward[row]
        return (
            self._action[row],
            None if math.isnan(reward) else reward,
            self._terminated[row],
            self._rated_ms[row] > 0,
            self._corrections.get(row),
        )

    def _link(self, row: int, successor: str) -> None:
        child = self._rows.find(successor) if successor else -1
        before = self._child[row]
        if before >= 0 and before != child:
            self._parent[before] = -1
        self._child[row] = child
        if child >= 0:
            self._parent[child] = row

    def _settle(self, keys: set[int]) -> None:
        """Works out anew what is corrected in these states."""
        settled = [row for key in keys for row in self._settle_corrections(key)]
        if settled:
            # At once: with the next change their corrections may be others.
            self._touched.update(settled)
            self._prioritise()

    def _settle_corrections(self, key: int) -> set[int]:
        """Works out which corrections of a state are live; returns the rows that bear any.

        The newest of each teacher wins; one that was later rated below neutral lost its protection; one
        that was rated is taught by that rating instead of by `rewards.correction`.
        """
        rows = self._corrected_states.get(key)
        if not rows:
            return set()
        newest: dict[str, tuple[Correction, int]] = {}
        for row in rows:
            for given in self._corrections[row]:
                if given.teacher not in newest or given.revision > newest[given.teacher][0].revision:
                    newest[given.teacher] = (given, row)
        live: dict[int, bool] = {}
        """Action -> whether it has been rated."""
        bearers: set[int] = set()
        for given, row in newest.values():
            rated_ms, rated = self._newest_rating(key, given.action)
            if rated_ms > given.revision and rated < 0:
                continue
            live[given.action] = rated_ms > 0
            bearers.add(row)
        for row in rows:
            self.corrected[row] = False
            self.correction_open[row] = False
            if row in bearers:
                self.corrected[row, list(live)] = True
                self.correction_open[row, [x for x, was_rated in live.items() if not was_rated]] = True
        return rows

    def _newest_rating(self, key: int, action: int) -> tuple[int, float]:
        """When and how an action was last rated in a corrected state; (0, 0): never.

        A state is looked through once, at its first correction: 8 bytes a row. From then on its ratings lie
        in heaps, newest first; entries that are no longer true are dropped when they come up.
        """
        if key not in self._ratings:
            self._ratings[key] = {}
            for row in np.flatnonzero((self.state_key == key) & (self.rated_ms > 0)).tolist():
                self._note_rating(key, row)
        heap = self._ratings[key].get(action, [])
        while heap:
            ms, reward, row = heap[0]
            if (
                self.state_key[row] == key
                and self.action[row] == action
                and self.rated_ms[row] == -ms
                and self.reward[row] == -reward
            ):
                return -ms, -reward
            heapq.heappop(heap)
        return 0, 0.0

    def _note_rating(self, key: int, row: int) -> None:
        """Takes the rating of a row into account where its state is corrected."""
        ratings = self._ratings.get(key)
        if ratings is not None and self.rated_ms[row] > 0:
            heap = ratings.setdefault(int(self.action[row]), [])
            heapq.heappush(heap, (-int(self.rated_ms[row]), -float(self.reward[row]), row))

    def _forget_corrections(self, row: int) -> None:
        del self._corrections[row]
        self.corrected[row] = self.correction_open[row] = False
        key = self._state_key[row]
        rows = self._corrected_states[key]
        rows.discard(row)
        if not rows:
            del self._corrected_states[key]
            self._ratings.pop(key, None)

    def _touch(self, row: int) -> None:
        """Has the priority of a row worked out before the next batch is drawn."""
        self._touched.add(row)
        if self._leaves[row] and not self._is_learnable(row):
            self._fresh.add(row)

    def _prioritise(self) -> None:
        """Rows with something new to learn get the highest priority; rows with nothing get none."""
        if not self._touched:
            return
        rows = np.fromiter(self._touched, np.int64, len(self._touched))
        fresh = np.fromiter((row in self._fresh for row in self._touched), bool, len(rows))
        self._fresh -= self._touched
        self._touched.clear()
        present = self._tree.leaves[rows]
        highest = self._max_priority**self.config.alpha
        kept = np.where(fresh | (present == 0), highest, present)
        self._store_priorities(rows, np.where(self._learnable(rows), kept, 0.0))

    def _store_priorities(self, rows: np.ndarray, priorities: np.ndarray) -> None:
        protected = np.where(self._bears_correction(rows), priorities, 0.0)
        for tree, wanted in ((self._tree, priorities), (self._protected, protected)):
            changed = tree.leaves[rows] != wanted
            if changed.any():
                tree.set(rows[changed], wanted[changed])

    def _is_learnable(self, row: int) -> bool:
        """As `_learnable`, of one row."""
        if row in self._corrections and self.corrected[row].any():
            return True
        known = self._action[row] >= 0 and math.isfinite(self._reward[row])
        return known and bool(self.gamma == 0 or self._terminated[row] or self._child[row] >= 0)

    def _has_return(self, rows: np.ndarray) -> np.ndarray:
        """<bool>[n]: whether the action taken has a return to learn."""
        known = (self.action[rows] >= 0) & np.isfinite(self.reward[rows])
        return known & (self.terminated[rows] | (self.child[rows] >= 0) | (self.gamma == 0))

    def _bears_correction(self, rows: np.ndarray) -> np.ndarray:
        """<bool>[n]: whether there are live corrections on the row."""
        if not self._corrections:
            return np.zeros(len(rows), bool)
        return np.asarray(self.corrected[rows].any(1))

    def _learnable(self, rows: np.ndarray) -> np.ndarray:
        return self._has_return(rows) | self._bears_correction(rows)

    def _free_row(self) -> int:
        n = self.config.capacity_turns
        for _ in range(n):
            row = self._next_row
            self._next_row = (row + 1) % n
            if row not in self._corrections or not self.corrected[row].any():
                if self._rows.is_used(row):
                    self._evict(row)
                return row
        raise MemoryError(
            f"all {n} rows of replay hold live corrections, which are never evicted; raise capacity_turns"
        )

    def _evict(self, row: int) -> None:
        self.evicted += 1
        self._rows.remove(row)
        if row in self._corrections:
            self._forget_corrections(row)
        parent, child = self._parent[row], self._child[row]
        if parent >= 0:
            self._child[parent] = -1
        if child >= 0:
            self._parent[child] = -1
        self._parent[row] = self._child[row] = self._action[row] = -1
        self._reward[row] = math.nan
        self._rated_ms[row] = 0
        if self._newest_lesson == row:
            self._newest_lesson = -1
        # What is live in a state follows from the turns that are there, so a rating that goes counts no more.
        if self._corrected_states:
            self._settle({self._state_key[row]})
        self._touch(row)
        if parent >= 0:
            self._touch(parent)

    # Drawing

    def sample(self, batch_size: int, updates: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Draws a batch: the newest lesson, a share of corrected turns, the rest by priority.

        Returns the rows <int64>[B] and the columns that the learner wants. Importance weights are those of
        the mixture, (N P(i)) ** -beta (arXiv:1511.05952, sec. 3.4), divided by the batch's largest.

        Raises:
            ValueError: There is nothing to learn from yet.
        """
        total, protected_total = self._tree.total, self._protected.total
        if total <= 0:
            raise ValueError("nothing to learn from: no turn in replay has a return or a correction")
        newest = int(self._newest_lesson >= 0 and self._tree.leaves[self._newest_lesson] > 0)
        n_protected = 0
        if protected_total > 0:
            n_protected = min(batch_size - newest - 1, round(batch_size * self.config.protected_share))
        n_rest = batch_size - newest - n_protected
        parts = [np.full(newest, self._newest_lesson, np.int64), self._draw(self._tree, n_rest, total)]
        if n_protected:
            parts.append(self._draw(self._protected, n_protected, protected_total))
        rows = np.concatenate(parts)
        p = self._tree.leaves[rows] * (n_rest / batch_size / total)
        if n_protected:
            p += self._protected.leaves[rows] * (n_protected / batch_size / protected_total)
        if newest:
            p += (rows == self._newest_lesson) / batch_size
        weights = (len(self._rows) * p) ** -self._beta(updates)
        return rows, self._columns_of(rows, (weights / weights.max()).astype(np.float32))

    def update_priorities(self, rows: np.ndarray, errors: np.ndarray) -> None:
        """|TD error| -> priority; rows whose error is not finite keep theirs."""
        finite = np.isfinite(errors)
        if not finite.all():
            rows, errors = rows[finite], errors[finite]
            if not len(rows):
                return
        raised = np.abs(errors.astype(np.float64)) + self.config.priority_floor
        self._max_priority = max(1.0, float(raised.max()), self._max_priority * 0.999)
        priorities = raised**self.config.alpha
        self._tree.set(rows, priorities)
        protected = self._protected.leaves[rows] > 0
        if protected.any():
            self._protected.set(rows[protected], priorities[protected])

    def _draw(self, tree: SumTree, count: int, total: float) -> np.ndarray:
        return tree.sample((np.arange(count) + self.rng.random(count)) * (total / max(count, 1)))

    def _beta(self, updates: int) -> float:
        return self.config.beta + (1 - self.config.beta) * min(1.0, updates / self.config.beta_updates)

    def _columns_of(self, rows: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        has_return = self._has_return(rows)
        returns, discounts, following, told = self._returns(rows, has_return)
        judged = (self.rated_ms[rows] > 0) | self.corrected[rows].any(1)
        columns = {
            Columns.OBS: self._observations(rows),
            Columns.ACTIONS: np.maximum(self.action[rows], 0, dtype=np.int64),
            Columns.REWARDS: returns,
            torch_learner.HAS_RETURN: has_return.astype(np.float32),
            torch_learner.JUDGED: judged.astype(np.float32),
            torch_learner.TOLD: told.astype(np.float32),
            torch_learner.REST: returns - np.where(has_return, self.reward[rows], np.float32(0)),
            torch_learner.WEIGHTS: weights,
            torch_learner.CORRECTED: self.corrected.take(rows, 0),
            torch_learner.CORRECTION_OPEN: self.correction_open.take(rows, 0),
            rl_module.ALLOWED: self.allowed.take(rows, 0),
        }
        if discounts.any():
            columns[Columns.NEXT_OBS] = self._observations(following)
            columns[torch_learner.NEXT_ALLOWED] = self.allowed.take(following, 0)
            columns[torch_learner.DISCOUNTS] = discounts
        return columns

    def _observations(self, rows: np.ndarray) -> np.ndarray:
        """<float32>[B, D], however they are kept."""
        return self.obs.take(rows, 0).astype(np.float32, copy=False)

    def _returns(
        self, rows: np.ndarray, has_return: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """n-step returns <float32>[B], their discounts (0: nothing follows), next rows, and who was told.

        The last, <bool>[B], says whether one of the turns in the return was rated. A return goes on to the
        next turn while that turn was shown as decided and has a return of its own.
        """
        returns = np.where(has_return, self.reward[rows], 0.0)
        discount = np.full(len(rows), self.gamma)
        told = has_return & (self.rated_ms[rows] > 0)
        last = rows
        for _ in range(self.n_step - 1 if self.gamma else 0):
            following = self.child[last]
            goes_on = has_return & ~self.terminated[last] & (following >= 0)
            goes_on &= self._has_return(following) & ~self.breaks_return[following]
            returns = np.where(goes_on, returns + discount * self.reward[following], returns)
            discount = np.where(goes_on, discount * self.gamma, discount)
            told |= goes_on & (self.rated_ms[following] > 0)
            last = np.where(goes_on, following, last)
        following = self.child[last]
        ends = self.terminated[last] | (following < 0)
        discount = np.where(ends, 0.0, discount)
        following = np.where(ends, 0, following)
        return returns.astype(np.float32), discount.astype(np.float32), following, told

    # Checkpointable

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._ctor, {}

    def get_state(
        self, components: Any = None, *, not_components: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Arrays up to the highest row in use, priorities, links, counters, the random generator."""
        state = self.present_state()
        state["columns"] = {name: column.copy() for name, column in state["columns"].items()}
        state["priorities"] = state["priorities"].copy()
        return state

    def present_state(self) -> dict[str, Any]:
        """As `get_state`, but not copied: its arrays change as the replay does."""
        in_use = np.flatnonzero(self.decision_id)
        used = int(in_use[-1]) + 1 if len(in_use) else 0
        return {
            "columns": {name: getattr(self, name)[:used] for name in self._COLUMNS},
            "priorities": self._tree.leaves[:used],
            "corrections": {
                row: [(c.teacher, c.revision, c.action) for c in given]
                for row, given in self._corrections.items()
            },
            "next_row": self._next_row,
            "newest_lesson": self._newest_lesson,
            "max_priority": self._max_priority,
            "evicted": self.evicted,
            "amended_too_late": self.amended_too_late,
            "added": self.added,
            "rng": self.rng.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes a state of the same shape back; the capacity may have grown.

        Raises:
            ValueError: The state's rows do not fit this replay.
        """
        used = len(state["priorities"])
        if used > self.config.capacity_turns:
            raise ValueError(f"{used} rows do not fit in capacity_turns {self.config.capacity_turns}")
        self.__init__(*self._ctor)  # type: ignore[misc]
        for name in self._COLUMNS:
            getattr(self, name)[:used] = state["columns"][name]
        self._corrections = {
            row: tuple(Correction(*c) for c in given) for row, given in state["corrections"].items()
        }
        self._rows = DecisionRows(self.decision_id)
        for row in self._corrections:
            self._corrected_states.setdefault(int(self.state_key[row]), set()).add(row)
        self._store_priorities(np.arange(used), state["priorities"])
        # A replay that has grown fills its new rows before it evicts.
        self._next_row = used if used < self.config.capacity_turns else state["next_row"]
        self._newest_lesson = state["newest_lesson"]
        self._max_priority = state["max_priority"]
        self.evicted, self.added = state["evicted"], state["added"]
        self.amended_too_late = state["amended_too_late"]
        self.rng.bit_generator.state = state["rng"]


def state_key(obs: np.ndarray, allowed: np.ndarray) -> int:
    """Names a state: equal keys, equal observation and mask."""
    digest = blake2b(obs.tobytes() + allowed.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _within_float16(obs: np.ndarray) -> np.ndarray:
    largest = np.finfo(np.float16).max
    return np.clip(obs, -largest, largest)
