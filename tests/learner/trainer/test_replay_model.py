"""Replay against the obvious: slots and a dict of records, everything worked out anew at each look."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from turnwise_learner.trainer.replay import ReplayConfig, TurnReplay
from turnwise_learner.trainer.turns import Correction, TurnRecord

N, D, A, STATES, DIALOGUES = 64, 3, 3, 4, 3
ALLOWED = np.ones(A, bool)


class Model:
    """What replay should hold, without arrays, trees or indices."""

    def __init__(self, gamma: float, n_step: int) -> None:
        self.gamma, self.n_step = gamma, n_step
        self.slots: list[str | None] = [None] * N
        self.next_slot = 0
        self.records: dict[str, TurnRecord] = {}
        self.state_of: dict[str, int] = {}
        self.successor: dict[str, str | None] = {}
        self.too_late = self.evicted = 0

    def apply(self, records: list[TurnRecord]) -> None:
        told = [record for record in records if self._has_room_for(record)]
        for record in told:
            if record.decision_id in self.records:
                self.records[record.decision_id] = record
        for record in told:
            if record.decision_id in self.records:
                follows = record.successor if record.successor in self.records else None
                self.successor[record.decision_id] = follows

    def _has_room_for(self, record: TurnRecord) -> bool:
        name = record.decision_id
        if name in self.records:
            return True
        if record.obs is None:
            self.too_late += 1
            return False
        while self.slots[self.next_slot] in self.protected():
            self.next_slot = (self.next_slot + 1) % N
        self._evict(self.slots[self.next_slot])
        self.slots[self.next_slot] = name
        self.next_slot = (self.next_slot + 1) % N
        # Nothing is known of it yet but what was seen.
        self.records[name] = TurnRecord(name, record.obs, record.allowed, -1, None)
        self.state_of[name], self.successor[name] = int(record.obs[0]), None
        return True

    def _evict(self, name: str | None) -> None:
        if name is None:
            return
        self.evicted += 1
        del self.records[name], self.state_of[name], self.successor[name]
        for parent, follows in self.successor.items():
            if follows == name:
                self.successor[parent] = None

    # What follows from the records

    def has_return(self, name: str) -> bool:
        record = self.records[name]
        if record.action < 0 or record.reward is None:
            return False
        return record.terminated or self.successor[name] is not None or self.gamma == 0

    def corrected(self, name: str) -> tuple[set[int], set[int]]:
        """Actions with a live correction that this turn bears, and those of them not yet rated."""
        alike = [r for n, r in self.records.items() if self.state_of[n] == self.state_of[name]]
        given = [(c, r.decision_id) for r in alike for c in r.corrections]
        newest = {
            c.teacher: max((x for x in given if x[0].teacher == c.teacher), key=_revision) for c, _ in given
        }
        live, bearers = set(), set()
        for correction, bearer in newest.values():
            ratings = [
                (r.rated_ms, r.reward or 0.0) for r in alike if r.rated_ms and r.action == correction.action
            ]
            rated_ms, reward = max(ratings, default=(0, 0.0))
            if not (rated_ms > correction.revision and reward < 0):
                live.add(correction.action)
                bearers.add(bearer)
        rated = {r.action for r in alike if r.rated_ms}
        return (live, live - rated) if name in bearers else (set(), set())

    def protected(self) -> set[str | None]:
        return {name for name in self.records if self.corrected(name)[0]}

    def learnable(self) -> set[str]:
        return {name for name in self.records if self.has_return(name) or self.corrected(name)[0]}

    def returns(self, name: str) -> tuple[float, float, str | None, bool]:
        """Return, discount and next state of a turn, and whether anybody rated a turn of the return.

        The discount is 0 where nothing follows.
        """
        if not self.has_return(name):
            follows = None if self.records[name].terminated else self.successor[name]
            return 0.0, self.gamma if follows else 0.0, follows, False
        told = self.records[name].rated_ms > 0
        total, discount, last = self.records[name].reward or 0.0, self.gamma, name
        for _ in range(self.n_step - 1 if self.gamma else 0):
            follows = self.successor[last]
            if self.records[last].terminated or follows is None:
                break
            if not self.has_return(follows) or self.records[follows].breaks_return:
                break
            total += discount * (self.records[follows].reward or 0.0)
            told |= self.records[follows].rated_ms > 0
            discount *= self.gamma
            last = follows
        follows = None if self.records[last].terminated else self.successor[last]
        return total, discount if follows else 0.0, follows, told


def _revision(given: tuple[Correction, str]) -> int:
    return given[0].revision


class ReplayMachine(RuleBasedStateMachine):
    """Dialogues interleaved; rewards late, changed, taken back; corrections; evictions; restarts."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0
        self.said: list[TurnRecord] = []
        self.newest_of: dict[int, str] = {}

    @initialize(gamma=st.sampled_from([0.0, 0.9]), n_step=st.integers(1, 3))
    def begin(self, gamma: float, n_step: int) -> None:
        self.model = Model(gamma, n_step)
        self.replay = self.empty()

    def empty(self) -> TurnReplay:
        return TurnReplay(D, A, self.model.gamma, self.model.n_step, ReplayConfig(capacity_turns=N))

    def tell(self, records: list[TurnRecord]) -> None:
        self.replay.apply(records, lesson=True)
        self.model.apply(records)
        for record in records:
            self.said = [known for known in self.said if known.decision_id != record.decision_id] + [record]

    def retell(self, decision_id: str, **news: Any) -> TurnRecord:
        known = next(record for record in self.said if record.decision_id == decision_id)
        return replace(known, obs=None, **news)

    def tick(self) -> int:
        self.clock += 10
        return self.clock

    @rule(
        dialogue=st.integers(0, DIALOGUES - 1),
        state=st.integers(0, STATES - 1),
        action=st.integers(-1, A - 1),
        parent_first=st.booleans(),
        breaks=st.booleans(),
        rated=st.booleans(),
    )
    def speak(
        self, dialogue: int, state: int, action: int, parent_first: bool, breaks: bool, rated: bool
    ) -> None:
        name = f"t{self.tick()}"
        obs = np.full(D, state, np.float32)
        records = [TurnRecord(name, obs, ALLOWED, action, None, breaks_return=breaks)]
        if dialogue in self.newest_of:
            parent = self.retell(self.newest_of[dialogue], successor=name)
            if rated:
                parent = replace(parent, reward=0.25 * action, rated_ms=self.tick())
            records.insert(0 if parent_first else 1, parent)
        self.newest_of[dialogue] = name
        self.tell(records)

    @rule(count=st.integers(1, 50), rated=st.booleans())
    def many_others_speak(self, count: int, rated: bool) -> None:
        for _ in range(count):
            at = self.tick()
            record = TurnRecord(
                f"o{at}", np.full(D, at // 10 % STATES, np.float32), ALLOWED, at // 10 % A, None
            )
            self.tell([replace(record, reward=0.5, rated_ms=at, terminated=True) if rated else record])

    @precondition(lambda self: self.said)
    @rule(data=st.data(), reward=st.one_of(st.none(), st.sampled_from([-1.0, -0.5, 0.0, 1.0])))
    def rate_or_take_back(self, data: st.DataObject, reward: float | None) -> None:
        name = data.draw(st.sampled_from(self.said)).decision_id
        self.tell([self.retell(name, reward=reward, rated_ms=0 if reward is None else self.tick())])

    @precondition(lambda self: self.said)
    @rule(
        data=st.data(),
        teacher=st.sampled_from(["ann", "bob"]),
        action=st.integers(0, A - 1),
        late=st.booleans(),
    )
    def correct(self, data: st.DataObject, teacher: str, action: int, late: bool) -> None:
        record = data.draw(st.sampled_from(self.said))
        revision = self.tick() - (35 if late else 0)
        others = tuple(c for c in record.corrections if c.teacher != teacher)
        given = (*others, Correction(teacher, revision, action))
        self.tell([self.retell(record.decision_id, corrections=given)])

    @precondition(lambda self: any(record.corrections for record in self.said))
    @rule(data=st.data())
    def take_corrections_back(self, data: st.DataObject) -> None:
        record = data.draw(st.sampled_from([record for record in self.said if record.corrections]))
        self.tell([self.retell(record.decision_id, corrections=())])

    @precondition(lambda self: self.newest_of)
    @rule(data=st.data(), terminated=st.booleans())
    def end(self, data: st.DataObject, terminated: bool) -> None:
        dialogue = data.draw(st.sampled_from(sorted(self.newest_of)))
        self.tell([self.retell(self.newest_of.pop(dialogue), terminated=terminated)])

    @precondition(lambda self: self.replay.learnable)
    @rule(seed=st.integers(0, 1000))
    def learn(self, seed: int) -> None:
        rows, columns = self.replay.sample(16)
        drawn = {self.replay.decision_id[row].decode() for row in rows}
        assert drawn <= self.model.learnable()
        assert np.isfinite(columns["weights"]).all()
        self.replay.update_priorities(rows, np.random.default_rng(seed).exponential(1, len(rows)))

    @rule()
    def restart(self) -> None:
        restored = self.empty()
        restored.set_state(self.replay.get_state())
        assert restored._rows == self.replay._rows
        np.testing.assert_array_equal(restored._tree.leaves, self.replay._tree.leaves)
        self.replay = restored

    @invariant()
    def it_holds_the_same_turns(self) -> None:
        assert set(self.replay._rows) == set(self.model.records)
        assert len(self.replay) == len(self.model.records)
        assert (self.replay.evicted, self.replay.amended_too_late) == (
            self.model.evicted,
            self.model.too_late,
        )

    @invariant()
    def the_same_can_be_learned(self) -> None:
        leaves = {name: self.replay.priority(name) for name in self.model.records}
        assert {name for name, priority in leaves.items() if priority > 0} == self.model.learnable()
        assert self.replay._tree.total == pytest.approx(sum(leaves.values()))
        protected = self.model.protected()
        total = sum(priority for name, priority in leaves.items() if name in protected)
        assert self.replay._protected.total == pytest.approx(total)

    @invariant()
    def every_turn_teaches_the_same(self) -> None:
        names = sorted(self.model.records)
        rows = np.array([self.replay._rows[name] for name in names], np.int64)
        returns, discounts, following, told = self.replay._returns(rows, self.replay._has_return(rows))
        for i, name in enumerate(names):
            wanted, discount, follows, anybody = self.model.returns(name)
            assert told[i] == anybody
            assert returns[i] == pytest.approx(wanted, abs=1e-6)
            assert discounts[i] == pytest.approx(discount, abs=1e-6)
            if discount:
                assert self.replay.decision_id[following[i]].decode() == follows
            live, unrated = self.model.corrected(name)
            assert set(np.flatnonzero(self.replay.corrected[rows[i]])) == live
            assert set(np.flatnonzero(self.replay.correction_open[rows[i]])) == unrated


TestReplay = pytest.mark.timeout(600)(ReplayMachine.TestCase)
TestReplay.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
