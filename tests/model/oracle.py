"""What should be true: dicts of what clients were told and said, and every answer worked out anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from turnwise.v1 import dialogue_pb2 as pb

Feedback = pb.FeedbackRequest


@dataclass
class Decision:
    """A decision that an actor made, whether or not anybody heard of it."""

    dialogue_id: str
    index: int
    parent: str
    action: str
    mode: int
    made_ms: int
    promised: bool = False
    """A client was told of it, and that it is recorded."""


@dataclass(frozen=True)
class Lesson:
    """What replay should hold of a decision that it holds at all."""

    action: str
    """Empty: none went out."""
    reward: float | None
    corrections: frozenset[tuple[str, str]]
    """Teacher and action."""


class Oracle:
    """Fed with every request that was answered, and every answer that was heard."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.decisions: dict[str, Decision] = {}
        self.feedback: dict[str, tuple[Feedback, str]] = {}
        """Request and its teacher, by id."""
        self.ends: dict[str, pb.EndRequest] = {}
        self.ends_at: defaultdict[str, set[str]] = defaultdict(set)
        """Decision -> ids of the requests that ended a dialogue there."""
        self.end_users: dict[str, tuple[str, str]] = {}
        """Request id of an end -> its dialogue and its user."""

    def made(self, turn: pb.Turn, parent: str, mode: int, heard: bool, now_ms: int) -> None:
        known = self.decisions.setdefault(
            turn.decision_id, Decision(turn.dialogue_id, turn.index, parent, turn.action, mode, now_ms)
        )
        assert (known.dialogue_id, known.index, known.parent) == (turn.dialogue_id, turn.index, parent)
        known.promised |= heard and turn.recorded

    def given(self, request: Feedback, teacher: str) -> None:
        self.feedback.setdefault(request.feedback_id, (request, request.teacher or teacher))

    def ended(self, request: pb.EndRequest, at: str, dialogue_id: str, user: str) -> None:
        self.ends[request.request_id] = request
        self.end_users[request.request_id] = dialogue_id, user
        if at:
            self.ends_at[at].add(request.request_id)

    # What follows

    def learnable(self, there: Iterable[str]) -> set[str]:
        """Of the decisions in the journal, those that may be learned from."""
        return {name for name in there if self.decisions[name].mode != pb.EVALUATE}

    def confirmed(self, there: Iterable[str]) -> set[str]:
        """Decisions that a person met: named by an act that is in the journal, by feedback, by an end."""
        acts = {self.decisions[name].parent for name in there}
        told = {request.decision_id for request, _ in self.feedback.values()}
        return (acts | told | set(self.ends_at)) - {""}

    def lesson(self, name: str, confirmed: bool, whole_dialogue: bool) -> Lesson:
        """`whole_dialogue`: feedback on the dialogue is for this turn."""
        decision = self.decisions[name]
        action = decision.action if confirmed else ""
        deliveries = [
            (request.revision, request.feedback_id, request)
            for request, _ in self.feedback.values()
            if request.decision_id == name and request.WhichOneof("kind") in ("overridden", "dropped")
        ]
        if deliveries:
            newest = max(deliveries)[2]
            action = newest.overridden.action if newest.HasField("overridden") else ""
        rewards, corrections = self._live(name)
        reward = fmean(rewards.values()) if rewards else None
        if whole_dialogue and self.gamma and (given := self._dialogue_rewards(decision.dialogue_id)):
            reward = (reward or 0.0) + fmean(given.values())
        if reward is None and self.gamma and not corrections:
            reward = 0.0
        return Lesson(action, reward if action else None, frozenset(corrections.items()))

    def rated_turns(self) -> set[str]:
        named = {request.decision_id for request, _ in self.feedback.values()}
        return {name for name in named if name and self.rated(name)}

    def applied(self, there: Iterable[str]) -> int:
        """Rewards and corrections that are learned from at gamma 0."""
        count = 0
        for name in self.learnable(there):
            rewards, corrections = self._live(name)
            went_out = self.lesson(name, True, False).action
            count += len(corrections) + (len(rewards) if went_out else 0)
        return count

    def rated(self, name: str) -> bool:
        return any(self._live(name))

    def _live(self, name: str) -> tuple[dict[str, float], dict[str, str]]:
        """Rewards and corrections that count, by teacher."""
        said = [given for given in self.feedback.values() if given[0].decision_id == name]
        rewards: dict[str, float] = {}
        corrections: dict[str, str] = {}
        for request, teacher in sorted(said, key=lambda each: (each[0].revision, each[0].feedback_id)):
            kind = request.WhichOneof("kind")
            if kind == "reward":
                rewards[teacher] = request.reward
            elif kind == "correction":
                corrections[teacher] = request.correction
            elif kind == "retraction":
                rewards.pop(teacher, None)
                corrections.pop(teacher, None)
        return rewards, corrections

    def _dialogue_rewards(self, dialogue_id: str) -> dict[str, float]:
        """Newest reward on the whole dialogue by teacher; only ends give such ones here."""
        found: dict[str, tuple[int, str, float]] = {}
        for request_id, (ended, user) in self.end_users.items():
            request = self.ends[request_id]
            if ended == dialogue_id and request.HasField("reward"):
                newest = (request.revision, request_id, request.reward)
                found[user] = max(found.get(user, newest), newest)
        return {user: reward for user, (_, _, reward) in found.items()}

    def last_turn(self, dialogue_id: str, there: set[str]) -> str:
        """Of the turns in the journal, the last at which somebody ended the dialogue; empty: nobody has."""
        ends = [
            (self.decisions[name].index, name)
            for name in self.ends_at
            if name in there and self.decisions[name].dialogue_id == dialogue_id
        ]
        return max(ends)[1] if ends else ""
