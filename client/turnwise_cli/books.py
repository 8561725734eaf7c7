"""What the journal says of every turn and every rating, folded from its facts in any order."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.policy import Domain, EncodingError
from turnwise_learner.journal import Row
from turnwise_learner.trainer.assembler import FactReader

Order = tuple[int, str]
"""Revision, and the id that decides between two of the same."""


@dataclass(frozen=True)
class _Decision:
    dialogue_id: str
    parent_id: str
    index: int
    action: str
    time_ms: int
    not_learnable: str
    """Why nothing about it is learned; empty: it may be."""


@dataclass(frozen=True)
class _Given:
    """One reward, correction, retraction or comment."""

    order: Order
    kind: str
    action: str = ""
    """That a correction names."""


@dataclass(frozen=True)
class Learned:
    """What a trainer that has taken in the same facts holds and has counted."""

    rows: int
    """Decisions and last states that ever entered replay."""
    turns: int
    rated_turns: int


@dataclass
class Books:
    """Takes facts in with `add`; `close` counts, and lists in `problems` what does not close.

    Args:
        domain: The one in force; None: not known, and what depends on it is left out.
        domain_json: `(fingerprint) -> JSON or None`, the domains that the journal was written under.
    """

    domain: Domain | None = None
    domain_json: Callable[[str], str | None] = lambda fingerprint: None
    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[int] = field(default_factory=Counter)
    """Facts by `Row.kind`."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Live ratings that are not learned, by why."""
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = FactReader(self.domain, self.domain_json) if self.domain else None
        self._decisions: dict[str, _Decision] = {}
        self._unrecorded: set[str] = set()
        self._continued: dict[str, str] = {}
        self._confirmed: dict[str, str] = {}
        self._delivered: dict[str, tuple[Order, str, str]] = {}
        self._feedback: defaultdict[tuple[str, str, str], list[_Given]] = defaultdict(list)
        self._rated_turns: set[str] = set()
        self._rated_dialogues: set[str] = set()
        self._ends: defaultdict[str, dict[str, bool]] = defaultdict(dict)
        """Dialogue -> decisions after which it was ended -> whether a last state came with that."""

    def add(self, rows: Iterable[Row]) -> "Books":
        """Takes facts in."""
        for row in rows:
            fact = row.fact
            kind = fact.WhichOneof("kind")
            self.kinds[row.kind] += 1
            self._unrecorded.update(fact.unrecorded)
            if kind == "started":
                self._continued[fact.dialogue_id] = fact.started.continues
            elif kind == "decided":
                self._decide(fact)
            elif kind == "delivered":
                self._deliver(fact)
            elif kind == "feedback":
                self._rate(fact)
            elif kind == "ended":
                self._end(fact)
            else:
                self.problems.append(f"fact {row.seq} ({fact.key}) is of no kind that this version knows")
        return self

    def close(self, now_ms: int = 0) -> "Books":
        """Counts; `now_ms` tells which windows of `rewards.wait` are still open."""
        counts = self.counts
        counts["facts"] = self.kinds.total()
        counts["dialogues"] = len(self._continued)
        counts["ended"] = sum(map(len, self._ends.values()))
        counts["decided"] = len(self._decisions)
        counts["unrecorded"] = len(self._unrecorded - set(self._decisions))
        for decision_id, by in self._confirmed.items():
            if decision_id not in self._decisions and decision_id not in self._unrecorded:
                self.problems.append(f"{by} names decision {decision_id}, which is not in the journal")
        for decision_id, decision in self._decisions.items():
            self._count_decision(decision_id, decision)
        for (dialogue_id, decision_id, _), given in self._feedback.items():
            self._count_feedback(dialogue_id, decision_id, given, now_ms)
        counts["not learnable"] = self.reasons.total()
        counts["rated turns"], counts["rated dialogues"] = len(self._rated_turns), len(self._rated_dialogues)
        self._equal("decided", "confirmed", "unconfirmed")
        self._equal("confirmed", "shown", "overridden", "dropped")
        self._equal("feedback", "rated", "retractions", "comments")
        self._equal("rated", "applied", "superseded", "retracted", "waiting", "not learnable")
        return self

    def learned(self) -> Learned:
        """What these facts, no more and no fewer, make of a replay."""
        learnable = {name for name, decision in self._decisions.items() if not decision.not_learnable}
        last_states = sum(
            has_last and name in learnable for ends in self._ends.values() for name, has_last in ends.items()
        )
        rated = set()
        for (dialogue_id, decision_id, _), given in self._feedback.items():
            for each, fate in _fates(given):
                name = decision_id or self._rated_by_dialogue(dialogue_id)
                if fate == "live" and self._knows(each.action):
                    rated.add(name)
        return Learned(
            len(learnable) + last_states, len(learnable & set(self._confirmed)), len(rated & learnable)
        )

    def _equal(self, whole: str, *parts: str) -> None:
        total = sum(self.counts[part] for part in parts)
        if self.counts[whole] != total:
            self.problems.append(f"{whole} is {self.counts[whole]}, but {' + '.join(parts)} is {total}")

    # Taking in

    def _confirm(self, decision_id: str, by: str) -> None:
        if decision_id:
            self._confirmed.setdefault(decision_id, by)

    def _decide(self, fact: training_pb2.Fact) -> None:
        decided = fact.decided
        self._decisions[decided.decision_id] = _Decision(
            fact.dialogue_id,
            decided.parent_id,
            decided.index,
            decided.action,
            fact.time_ms,
            self._why_not_learnable(decided),
        )
        self._confirm(decided.parent_id, f"decision {decided.decision_id} of dialogue {fact.dialogue_id}")

    def _why_not_learnable(self, decided: training_pb2.Decided) -> str:
        if not decided.recorded:
            return "recorded=false"
        if decided.mode == dialogue_pb2.EVALUATE:
            return "evaluate"
        # What was checked by an actor of the same domain need not be read again.
        if self._reader and decided.domain_fingerprint != self._reader.domain.fingerprint:
            try:
                self._reader.encode(decided.observation, decided.history)
            except EncodingError:
                return "state not in the domain"
        return ""

    def _deliver(self, fact: training_pb2.Fact) -> None:
        delivered = fact.delivered
        how = training_pb2.Delivered.How.Name(delivered.how).lower()
        self._confirm(delivered.decision_id, f"a delivery in dialogue {fact.dialogue_id}")
        new = ((delivered.revision, fact.key), how, delivered.action)
        self._delivered[delivered.decision_id] = max(self._delivered.get(delivered.decision_id, new), new)

    def _rate(self, fact: training_pb2.Fact) -> None:
        feedback = fact.feedback
        self._confirm(feedback.decision_id, f"feedback in dialogue {fact.dialogue_id}")
        kind = feedback.WhichOneof("kind") or "comment_only"
        order = (feedback.revision, feedback.feedback_id)
        key = (fact.dialogue_id, feedback.decision_id, feedback.teacher)
        self._feedback[key].append(_Given(order, kind, feedback.correction))

    def _end(self, fact: training_pb2.Fact) -> None:
        ended = fact.ended
        has_last = ended.HasField("last_state") and not ended.terminated
        self._ends[fact.dialogue_id][ended.decision_id] = has_last
        self._confirm(ended.decision_id, f"the end of dialogue {fact.dialogue_id}")

    # Counting

    def _count_decision(self, decision_id: str, decision: _Decision) -> None:
        where = f"decision {decision_id} (dialogue {decision.dialogue_id}, turn {decision.index})"
        if decision.dialogue_id not in self._continued:
            self.problems.append(f"{where} belongs to a dialogue whose start is not in the journal")
        parent = self._decisions.get(decision.parent_id)
        if not decision.parent_id:
            if decision.index and not self._continued.get(decision.dialogue_id):
                self.problems.append(f"{where} has no parent; wanted only of turn 0")
        elif parent is not None and parent.dialogue_id != decision.dialogue_id:
            self.problems.append(f"{where} has its parent in another dialogue, {parent.dialogue_id}")
        elif parent is not None and parent.index + 1 != decision.index:
            self.problems.append(f"{where} follows turn {parent.index}: a gap in the turns")
        if decision_id not in self._confirmed:
            self.counts["unconfirmed"] += 1
            return
        self.counts["confirmed"] += 1
        how = self._delivered[decision_id][1] if decision_id in self._delivered else "shown"
        self.counts[how if how in ("overridden", "dropped") else "shown"] += 1

    def _count_feedback(self, dialogue_id: str, decision_id: str, given: list[_Given], now_ms: int) -> None:
        counts, live = self.counts, False
        for each, fate in _fates(given):
            counts["feedback"] += 1
            if fate == "live":
                live = True
                fate = self._fate_of_live(dialogue_id, decision_id, each, now_ms)
            if fate in ("retractions", "comments"):
                counts[fate] += 1
                continue
            counts["rated"] += 1
            if fate in ("applied", "superseded", "retracted", "waiting"):
                counts[fate] += 1
            else:
                self.reasons[fate] += 1
        if live:
            (self._rated_turns if decision_id else self._rated_dialogues).add(decision_id or dialogue_id)

    def _fate_of_live(self, dialogue_id: str, decision_id: str, given: _Given, now_ms: int) -> str:
        """`applied`, `waiting`, or why it is not learned."""
        if not decision_id and self.domain and self.domain.gamma == 0:
            return "whole dialogue at gamma 0"
        name = decision_id or self._last_turn(dialogue_id)
        decision = self._decisions.get(name)
        if decision is None:
            return "recorded=false" if name in self._unrecorded else "waiting"
        if decision.not_learnable:
            return decision.not_learnable
        if given.kind == "reward":
            _, how, action = self._delivered.get(name, ((0, ""), "shown", ""))
            if how == "dropped":
                return "undelivered"
            if not self._knows(action if how == "overridden" else decision.action):
                return "action not in the domain"
        elif not self._knows(given.action):
            return "action not in the domain"
        wait_ms = self.domain.rewards.wait_s * 1000 if self.domain else 0
        return "waiting" if decision.time_ms + wait_ms > now_ms > 0 else "applied"

    def _knows(self, action: str) -> bool:
        return not action or self._reader is None or self._reader.action(action) >= 0

    def _last_turn(self, dialogue_id: str) -> str:
        """Of the turns after which the dialogue was ended, the last; empty: none."""
        ends = self._ends.get(dialogue_id, {})
        known = ((self._decisions[name].index, name) for name in ends if name in self._decisions)
        return max(known, default=(0, ""))[1]

    def _rated_by_dialogue(self, dialogue_id: str) -> str:
        return self._last_turn(dialogue_id) if self.domain and self.domain.gamma else ""


def _fates(given: list[_Given]) -> list[tuple[_Given, str]]:
    """What became of each that one teacher said of one thing; `live`: it counts now."""
    fates: dict[Order, str] = {}
    live: dict[str, Order] = {}
    ordered = sorted(given, key=lambda each: each.order)
    for each in ordered:
        if each.kind in ("reward", "correction"):
            if each.kind in live:
                fates[live[each.kind]] = "superseded"
            live[each.kind] = each.order
            fates[each.order] = "live"
        elif each.kind == "retraction":
            fates |= dict.fromkeys(live.values(), "retracted")
            live.clear()
            fates[each.order] = "retractions"
        else:
            fates[each.order] = "comments"
    return [(each, fates[each.order]) for each in ordered]
