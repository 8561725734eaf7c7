"""Folds facts into turns and later amendments. Pure: the same facts give the same turns in any order.

Each dialogue is folded on its own, from its own facts. One that fell out of memory goes on from its last
turn, which is kept of many more, or is folded again from the journal. Nothing here is saved in checkpoints,
so nothing here can disagree with the journal.
The rules are those of docs/semantics.md.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.policy import Domain, Encoder, EncodingError, FieldViolation, RawObservation
from turnwise_learner.journal import DECIDED, STARTED, Row
from turnwise_learner.trainer.turns import Change, Correction, TurnRecord

_LAST = ":last"
"""Suffix of the id under which a truncated dialogue's last state lies in replay."""

_CACHED_MASKS = 1024

_LEARNED_MODES = {dialogue_pb2.MODE_UNSPECIFIED, dialogue_pb2.TEACH, dialogue_pb2.SERVE, dialogue_pb2.SHADOW}


class Assembler:
    """Turns journal rows into changes for replay.

    Args:
        domain: The domain in force; facts of its ancestors are read through action ids and slot names.
        load: `(dialogue_ids, through_seq) -> rows` of these dialogues in journal order, from the journal.
        domain_json: `(fingerprint) -> JSON or None`, the domains that the journal was written under.
        max_dialogues: Dialogues kept folded in memory, those that spoke last.
        max_tails: Others of which is kept where they stood, at least half as many; 0.7 KB each. The
            rest are folded again when they speak, and so are these when more than a next turn comes of them.
    """

    def __init__(
        self,
        domain: Domain,
        load: Callable[[Sequence[str], int], Iterable[Row]],
        domain_json: Callable[[str], str | None],
        max_dialogues: int = 10_000,
        max_tails: int = 200_000,
    ) -> None:
        self._reader = FactReader(domain, domain_json)
        self._load = load
        self._max_dialogues = max_dialogues
        self._folds: OrderedDict[str, DialogueFold] = OrderedDict()
        self._full = max_tails // 2
        self._younger: dict[str, _Tail] = {}
        self._older: dict[str, _Tail] = {}
        """Of those in neither, nothing is known; the older are forgotten when the younger are full."""

    def assemble(self, rows: Sequence[Row]) -> list[Change]:
        """One change a row, in journal order; `rows` follow those of the call before."""
        self._recall(rows)
        changes = []
        for row, obs in zip(rows, self._reader.observed(rows), strict=True):
            change = self._folds[row.dialogue_id].add(row, obs)
            if change is None:
                self._folds |= self._read([row.dialogue_id], row.seq - 1)
                change = self._folds[row.dialogue_id].add(row, obs)
                assert change is not None
            changes.append(change)
        while len(self._folds) > self._max_dialogues:
            self._let_go()
        return changes

    def _let_go(self) -> None:
        """Of the dialogue that has been silent for longest; where it stands is kept if that is simple."""
        dialogue_id, fold = self._folds.popitem(last=False)
        if (tail := fold.tail()) is not None:
            self._younger[dialogue_id] = tail
            if len(self._younger) >= self._full:
                self._older, self._younger = self._younger, {}

    def _recall(self, rows: Sequence[Row]) -> None:
        """Has the dialogues of these rows folded; one look at the journal for all that have to be read."""
        only_turns: dict[str, bool] = {}
        for row in rows:
            only_turns[row.dialogue_id] = row.kind <= DECIDED and only_turns.get(row.dialogue_id, True)
        again: list[str] = []
        for dialogue_id, goes_on in only_turns.items():
            fold = self._folds.get(dialogue_id)
            if fold is None:
                tail = self._younger.pop(dialogue_id, None) or self._older.pop(dialogue_id, None)
                if tail is not None and goes_on:
                    self._folds[dialogue_id] = DialogueFold(self._reader, tail)
                else:
                    again.append(dialogue_id)
            elif fold.is_tail and not goes_on:
                again.append(dialogue_id)
            else:
                self._folds.move_to_end(dialogue_id)
        if again:
            self._folds |= self._read(again, rows[0].seq - 1)
            for dialogue_id in again:
                self._folds.move_to_end(dialogue_id)

    def _read(self, dialogue_ids: Sequence[str], through_seq: int) -> dict[str, DialogueFold]:
        """Folded from the journal."""
        folds = {dialogue_id: DialogueFold(self._reader) for dialogue_id in dialogue_ids}
        for earlier in self._load(dialogue_ids, through_seq):
            folds[earlier.dialogue_id].add(earlier, anew=False)
        return folds


class FactReader:
    """Reads what is in a fact with the eyes of the domain in force."""

    def __init__(self, domain: Domain, domain_json: Callable[[str], str | None]) -> None:
        self.domain = domain
        self._domain_json = domain_json
        self._encoder = Encoder(domain)
        self._features_bytes = 4 * domain.state.features
        self._has_history = domain.state.history > 0
        self._actions_of: dict[str, tuple[str, ...] | None] = {domain.fingerprint: domain.action_ids}
        self.all_allowed = np.ones(len(domain.action_ids), bool)
        self.all_allowed.flags.writeable = False
        self._allowed_by: dict[tuple[bytes, str], np.ndarray] = {}
        self.gamma = domain.gamma
        self.wait_ms = int(domain.rewards.wait_s * 1000)
        skipped = domain.unrated_rule == "skip"
        self.unrated_reward = None if skipped else domain.per_turn_scaled

    def encode(self, observation: dialogue_pb2.Observation, history: Iterable[str]) -> np.ndarray:
        """<float32>[D].

        Raises:
            EncodingError: The observation is of a domain whose state this one does not contain.
        """
        return self._encoder.encode(raw_observation(observation), tuple(history))

    def observed(self, rows: Sequence[Row]) -> list[np.ndarray | None]:
        """<float32>[D] a row; None where it is no turn, or one that has to be encoded on its own.

        A batch of turns that are seen by their features alone is encoded as one.
        """
        observed: list[np.ndarray | None] = [None] * len(rows)
        places, packed = [], []
        for place, row in enumerate(rows):
            if row.kind == DECIDED and (features := self._bare_features(row.fact.decided)):
                places.append(place)
                packed.append(features)
        if packed:
            inputs, sound = self._encoder.encode_features(packed)
            for place, x, is_sound in zip(places, inputs, sound.tolist(), strict=True):
                if is_sound:
                    observed[place] = x
        return observed

    def _bare_features(self, decided: training_pb2.Decided) -> bytes | None:
        """What was observed, where that is as many features as the domain has, and nothing else."""
        observation = decided.observation
        features = observation.features
        if len(features) != self._features_bytes or observation.slots or observation.HasField("text"):
            return None
        return None if self._has_history and decided.history else features

    def action(self, action_id: str) -> int:
        """Index in the domain in force; -1: it has no such action."""
        return self.domain.action_index.get(action_id, -1)

    def scaled(self, reward: float) -> float:
        """On [-1, 1]; a reward of an ancestor's wider range is clipped to the one in force."""
        low, high = self.domain.rewards.range
        return self.domain.scale_reward(min(max(reward, low), high))

    def allowed(self, mask: bytes, fingerprint: str) -> np.ndarray:
        """<bool>[A], read only; all where the fact says nothing or its domain is not known."""
        if not mask:
            return self.all_allowed
        allowed = self._allowed_by.get((mask, fingerprint))
        if allowed is None:
            if len(self._allowed_by) >= _CACHED_MASKS:
                self._allowed_by.clear()
            allowed = self._allowed_by[mask, fingerprint] = self._read_mask(mask, fingerprint)
        return allowed

    def _read_mask(self, mask: bytes, fingerprint: str) -> np.ndarray:
        actions = self._actions(fingerprint)
        if actions is None:
            return self.all_allowed
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        named = {action for action, bit in zip(actions, bits, strict=False) if bit}
        allowed = np.array([action in named for action in self.domain.action_ids])
        allowed.flags.writeable = False
        return allowed

    def _actions(self, fingerprint: str) -> tuple[str, ...] | None:
        if fingerprint not in self._actions_of:
            json = self._domain_json(fingerprint)
            self._actions_of[fingerprint] = None if json is None else Domain.from_json(json).action_ids
        return self._actions_of[fingerprint]


def raw_observation(observation: dialogue_pb2.Observation) -> RawObservation:
    """The wire's observation as the encoder wants it.

    Raises:
        EncodingError: Its features are no float32s.
    """
    packed = observation.features
    if len(packed) % 4:
        raise EncodingError([FieldViolation("observation.features", f"{len(packed)} bytes", "4 bytes each")])
    slots: dict[str, str | float | bool] = {}
    for slot in observation.slots:
        value = slot.WhichOneof("value")
        if value is not None:
            slots[slot.name] = getattr(slot, value)
    features = np.frombuffer(packed, "<f4") if packed else None
    text = observation.text if observation.HasField("text") else None
    return RawObservation(text=text, slots=slots, features=features)


@dataclass(slots=True)
class _Decision:
    """What is kept of a Decided fact; its observation lies in replay, and in the journal."""

    parent_id: str
    index: int
    action: int
    allowed: bytes
    domain_fingerprint: str
    time_ms: int


class _Live(NamedTuple):
    """Feedback that counts now."""

    reward: float | None = None
    rated_ms: int = 0
    corrections: tuple[Correction, ...] = ()


_NOT_RATED = _Live()


_Rating = tuple[float | None, tuple[Correction, ...]]
_UNRATED: _Rating = (None, ())


class _Told(NamedTuple):
    """What replay was told last of a decision."""

    truth: tuple[Any, ...]
    """The fields of TurnRecord from `action` on."""
    rating: _Rating
    confirmed: bool


class _Tail(NamedTuple):
    """Where a dialogue stands: all that its next turn needs to know of it."""

    decision_id: str
    decided: _Decision
    told: _Told
    due_ms: int


_NOTHING = _Told((), _UNRATED, False)
_NOT_MET = _Told((-1, None, "", False, True, (), 0), _UNRATED, False)
"""Of a turn that is the newest, and perhaps lost on its way."""

_NO_COUNTERS: dict[str, int] = {}
_ONE_TURN = {"turns": 1}
"""Shared by the changes of many facts."""


class DialogueFold:
    """The facts of one dialogue, and what replay has been told of them.

    One that is made of a tail knows the dialogue's last turn alone.
    """

    __slots__ = (
        "_children",
        "_confirmed",
        "_decided",
        "_delivered",
        "_due_ms",
        "_ends",
        "_feedback",
        "_reader",
        "_told",
        "_unlearnable",
        "is_tail",
    )

    def __init__(self, reader: FactReader, tail: _Tail | None = None) -> None:
        self._reader = reader
        self._decided: dict[str, _Decision] = {}
        self._children: defaultdict[str, list[str]] = defaultdict(list)
        self._confirmed: set[str] = set()
        self._delivered: dict[str, training_pb2.Fact] = {}
        self._feedback: defaultdict[str, list[training_pb2.Feedback]] = defaultdict(list)
        self._ends: dict[str, training_pb2.Fact] = {}
        """By the decision after which somebody ended the dialogue; tabs and late turns make it several."""
        self._told: dict[str, _Told] = {}
        self._unlearnable: set[str] = set()
        self._due_ms = 0
        self.is_tail = tail is not None
        if tail is not None:
            name, decided, self._told[name], self._due_ms = tail
            self._decided[name] = decided
            if decided.parent_id:
                self._children[decided.parent_id] = [name]
            if self._told[name].confirmed:
                self._confirmed.add(name)

    def tail(self) -> _Tail | None:
        """Of a dialogue whose last turn is the only one to go on from it, and of which no more was said."""
        if self._ends or self._feedback or self._delivered or self._unlearnable or not self._decided:
            return None
        name, decided = next(reversed(self._decided.items()))
        told, parent = self._told.get(name), decided.parent_id
        alone = not parent or len(self._children[parent]) == 1
        if told is None or self._children.get(name) or not alone:
            return None
        return _Tail(name, decided, told, self._due_ms)

    def add(self, row: Row, observed: np.ndarray | None = None, anew: bool = True) -> Change | None:
        """What a fact changes; None: a tail does not tell.

        Args:
            row: The fact.
            observed: What it observed, <float32>[D], where that is encoded already.
            anew: False: what follows from it was told already, it is only folded.
        """
        if row.kind == DECIDED and self._is_next_turn(decided := row.fact.decided):
            if observed is None and anew:
                observed = self._encode(decided)
            if observed is not None or not anew:
                return self._add_next_turn(row, decided, observed)
        if self.is_tail and row.kind != STARTED:
            return None
        return self._add_any(row, anew)

    # A turn that continues its dialogue: most facts are one

    def _is_next_turn(self, decided: training_pb2.Decided) -> bool:
        """Whether nothing was said of it yet, and the dialogue has neither ended nor forked here."""
        name, parent = decided.decision_id, decided.parent_id
        if self._ends or name in self._decided or name in self._confirmed:
            return False
        if not decided.recorded or decided.mode not in _LEARNED_MODES:
            return False
        if not parent:
            return True
        before = self._decided.get(parent)
        if before is None or parent not in self._told or self._children.get(parent):
            return False
        siblings = self._children.get(before.parent_id)
        return siblings is None or len(siblings) == 1

    def _add_next_turn(self, row: Row, decided: training_pb2.Decided, observed: np.ndarray | None) -> Change:
        """As `_add_any`, but it need not be asked what is true now.

        This turn has not been met, the one before it has been, and has this one as its successor.
        """
        name, parent = decided.decision_id, decided.parent_id
        kept = self._decided[name] = self._as_kept(decided, parent, row.time_ms)
        self._told[name] = _NOT_MET
        records = [self._record(name, observed, kept, _NOT_MET)]
        counters, unrated = _NO_COUNTERS, False
        if parent:
            before, told = self._decided[parent], self._told[parent]
            now = self._told[parent] = self._now_continued(before, told, name)
            self._children[parent] = [name]
            records.append(self._record(parent, None, before, now))
            if not told.confirmed:
                self._confirmed.add(parent)
                counters, unrated = _ONE_TURN, now.truth[1] is not None
        if self._reader.wait_ms:
            self._wait_for([name, parent])
        return Change(row.seq, tuple(records), False, unrated, self._due_ms, counters)

    def _now_continued(self, decided: _Decision, told: _Told, child: str) -> _Told:
        """The truth about a decision that has got its first child."""
        if told.confirmed:
            action, reward, _, _, breaks_return, corrections, rated_ms = told.truth
            truth = (action, reward, child, False, breaks_return, corrections, rated_ms)
            return _Told(truth, told.rating, True)
        action = decided.action
        reward = self._reader.unrated_reward if action >= 0 else None
        return _Told((action, reward, child, False, reward is None, (), 0), _UNRATED, True)

    # Any other fact

    def _add_any(self, row: Row, anew: bool) -> Change:
        counters: dict[str, int] = {}
        touched = self._apply(row.fact, counters)
        records: list[TurnRecord] = []
        lesson = unrated = False
        turns = rated_turns = 0
        for decision_id in touched:
            now = self._truth_of(decision_id)
            told = self._told.get(decision_id)
            if now is None or now == told:
                continue
            obs = None
            if told is None:
                told = _NOTHING
                # Of a decision that was not told before, this is the fact.
                if anew and (obs := self._encode(row.fact.decided)) is None:
                    _count(counters, "state_not_in_domain")
                    self._unlearnable.add(decision_id)
                    continue
            self._told[decision_id] = now
            lesson |= now.rating != told.rating
            first_met = now.confirmed and not told.confirmed
            unrated |= first_met and now.rating == _UNRATED and now.truth[1] is not None
            turns += first_met
            rated_turns += (now.rating != _UNRATED) - (told.rating != _UNRATED)
            if now.truth != told.truth:
                records.append(self._record(decision_id, obs, self._decided[decision_id], now))
        _count(counters, "turns", turns)
        _count(counters, "rated_turns", rated_turns)
        if self._ends:
            records += self._last_states(touched, anew)
        if self._reader.wait_ms:
            self._wait_for(touched)
        return Change(row.seq, tuple(records), lesson, unrated, self._due_ms, counters)

    def _record(self, name: str, obs: np.ndarray | None, decided: _Decision, told: _Told) -> TurnRecord:
        allowed = self._reader.allowed(decided.allowed, decided.domain_fingerprint)
        return TurnRecord(name, obs, allowed, *told.truth)

    # Folding

    def _apply(self, fact: training_pb2.Fact, counters: dict[str, int]) -> list[str]:
        """Takes the fact in; returns the decisions about which something may have changed."""
        kind = fact.WhichOneof("kind")
        if kind == "decided":
            return self._apply_decided(fact.decided, fact.time_ms, counters)
        if kind == "delivered":
            known = self._delivered.get(fact.delivered.decision_id, fact)
            self._delivered[fact.delivered.decision_id] = max(known, fact, key=_delivery_order)
            return self._confirm(fact.delivered.decision_id, counters)
        if kind == "feedback":
            feedback = fact.feedback
            self._feedback[feedback.decision_id].append(feedback)
            if feedback.decision_id:
                return self._confirm(feedback.decision_id, counters)
            _count(counters, "dialogue_feedback")
            if self._reader.gamma == 0 and feedback.HasField("reward"):
                _count(counters, "dialogue_feedback_not_learned")
            return list(self._ends)
        if kind == "ended":
            _count(counters, "ended", not self._ends)
            self._ends[fact.ended.decision_id] = fact
            touched = self._confirm(fact.ended.decision_id, counters) if fact.ended.decision_id else []
            return [*touched, *self._ends]
        return []

    def _apply_decided(
        self, decided: training_pb2.Decided, time_ms: int, counters: dict[str, int]
    ) -> list[str]:
        name, parent = decided.decision_id, decided.parent_id
        recorded = decided.recorded
        if decided.mode not in _LEARNED_MODES or not recorded:
            _count(counters, "evaluated" if recorded else "unrecorded")
            self._unlearnable.add(name)
        self._decided[name] = self._as_kept(decided, parent, time_ms)
        touched = [name]
        if parent:
            _count(counters, "forks", name in self._confirmed and self._has_met_child(parent))
            self._children[parent].append(name)
            touched += self._confirm(parent, counters)
        if name in self._ends:
            touched += self._ends
        return touched

    def _as_kept(self, decided: training_pb2.Decided, parent: str, time_ms: int) -> _Decision:
        return _Decision(
            parent,
            decided.index,
            self._reader.action(decided.action),
            decided.allowed,
            sys.intern(decided.domain_fingerprint),
            time_ms,
        )

    def _confirm(self, decision_id: str, counters: dict[str, int]) -> list[str]:
        """A decision that the person really met; its parent's successor may be another one now."""
        if decision_id in self._confirmed:
            return [decision_id]
        decided = self._decided.get(decision_id)
        parent = decided.parent_id if decided else ""
        _count(counters, "forks", self._has_met_child(parent))
        self._confirmed.add(decision_id)
        # An only child was the successor before, unless the dialogue had ended.
        if parent and (len(self._children[parent]) > 1 or parent in self._ends):
            return [decision_id, parent]
        return [decision_id]

    def _has_met_child(self, parent: str) -> bool:
        return bool(parent) and any(child in self._confirmed for child in self._children[parent])

    # Telling

    def _encode(self, decided: training_pb2.Decided) -> np.ndarray | None:
        """<float32>[D]; None: the domain does not contain such a state."""
        try:
            return self._reader.encode(decided.observation, decided.history)
        except EncodingError:
            return None

    def _truth_of(self, decision_id: str) -> _Told | None:
        """What replay is to be told of a decision; None: nothing."""
        decided = self._decided.get(decision_id)
        if decided is None or decision_id in self._unlearnable:
            return None
        live = self._live_feedback(decision_id) if self._feedback else _NOT_RATED
        confirmed = decision_id in self._confirmed
        action, as_decided = self._action(decision_id, decided, confirmed)
        reward = self._reward(live) if action >= 0 else None
        successor = self._successor(decision_id)
        corrections = live.corrections
        truth = (
            action,
            reward,
            successor,
            not successor and self._terminates(decision_id),
            reward is None or not as_decided or bool(corrections),
            corrections,
            live.rated_ms,
        )
        return _Told(truth, (live.reward, corrections), confirmed)

    def _action(self, decision_id: str, decided: _Decision, confirmed: bool) -> tuple[int, bool]:
        """The action that went out (-1: none), and whether it is the decided one."""
        fact = self._delivered.get(decision_id)
        if fact is not None and fact.delivered.how == training_pb2.Delivered.DROPPED:
            return -1, False
        if fact is not None and fact.delivered.how == training_pb2.Delivered.OVERRIDDEN:
            return self._reader.action(fact.delivered.action), False
        return (decided.action if confirmed else -1), True

    def _reward(self, live: _Live) -> float | None:
        if live.reward is not None:
            return live.reward + self._reader.domain.per_turn_scaled
        return None if live.corrections else self._reader.unrated_reward

    def _live_feedback(self, decision_id: str) -> _Live:
        own = self._live(self._feedback.get(decision_id, ()))
        of_dialogue = self._feedback.get("")
        if not of_dialogue or self._reader.gamma == 0 or decision_id != self._last_turn():
            return own
        whole = self._live(of_dialogue)
        if whole.reward is None:
            return own
        return _Live((own.reward or 0.0) + whole.reward, max(own.rated_ms, whole.rated_ms), own.corrections)

    def _live(self, given: Collection[training_pb2.Feedback]) -> _Live:
        """Per teacher the newest by the client's revision; across teachers the mean."""
        if not given:
            return _NOT_RATED
        rewards: dict[str, training_pb2.Feedback] = {}
        corrections: dict[str, training_pb2.Feedback] = {}
        for feedback in sorted(given, key=lambda f: (f.revision, f.feedback_id)):
            kind = feedback.WhichOneof("kind")
            if kind == "reward":
                rewards[feedback.teacher] = feedback
            elif kind == "correction":
                corrections[feedback.teacher] = feedback
            elif kind == "retraction":
                rewards.pop(feedback.teacher, None)
                corrections.pop(feedback.teacher, None)
        values = [self._reader.scaled(f.reward) for f in rewards.values()]
        actions = ((f, self._reader.action(f.correction)) for f in corrections.values())
        return _Live(
            reward=_mean(values) if values else None,
            rated_ms=max((f.revision for f in rewards.values()), default=0),
            corrections=tuple(
                Correction(f.teacher, f.revision, action) for f, action in actions if action >= 0
            ),
        )

    def _successor(self, decision_id: str) -> str:
        """The first confirmed child; else the newest, unless the end came after it; else a last state."""
        children = self._children.get(decision_id, [])
        if len(children) > 1:
            children = sorted(children, key=lambda child: (self._decided[child].time_ms, child))
        for child in children:
            if child in self._confirmed:
                return child
        end = self._ends.get(decision_id)
        if children and (end is None or self._decided[children[-1]].time_ms >= end.time_ms):
            return children[-1]
        return decision_id + _LAST if end is not None and _has_last_state(end.ended) else ""

    def _last_states(self, touched: list[str], encode: bool) -> list[TurnRecord]:
        """States given with truncated ends, as rows that are only ever next states."""
        records = []
        for decision_id in touched:
            end = self._ends.get(decision_id)
            last = decision_id + _LAST
            if end is None or not _has_last_state(end.ended) or last in self._told:
                continue
            if decision_id not in self._decided or decision_id in self._unlearnable:
                continue
            try:
                obs = self._reader.encode(end.ended.last_state, end.ended.history)
            except EncodingError:
                continue
            self._told[last] = _NOTHING
            records.append(TurnRecord(last, obs, self._reader.all_allowed, action=-1, reward=None))
        return records if encode else []

    def _last_turn(self) -> str:
        """Of the turns after which the dialogue was ended, the last; empty: none."""
        ends = ((self._decided[name].index, name) for name in self._ends if name in self._decided)
        return max(ends, default=(0, ""))[1]

    def _terminates(self, decision_id: str) -> bool:
        return decision_id in self._ends and self._ends[decision_id].ended.terminated

    def _wait_for(self, touched: list[str]) -> None:
        """Moves the time from which this is learned on; never back: a later truth must not be overtaken."""
        met = (self._decided[name].time_ms for name in touched if name in self._decided)
        dues = (time_ms + self._reader.wait_ms for time_ms in met)
        self._due_ms = max(self._due_ms, *dues, 0)


def _mean(values: list[float]) -> float:
    return values[0] if len(values) == 1 else float(np.mean(values))


def _has_last_state(ended: training_pb2.Ended) -> bool:
    return not ended.terminated and ended.HasField("last_state")


def _delivery_order(fact: training_pb2.Fact) -> tuple[int, str]:
    """The highest revision counts, whenever it arrives; two clients may give the same one."""
    return fact.delivered.revision, fact.key


def _count(counters: dict[str, int], name: str, by: int = 1) -> None:
    """Zeros leave nothing."""
    if by:
        counters[name] = counters.get(name, 0) + by
