"""The facts that requests give rise to. Keyed as training.proto says: the same request makes the same key."""

from __future__ import annotations

import struct
import time
from typing import NamedTuple

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.parts import varint

TERMINATED = ("success", "failure", "goodbye")
TRUNCATED = ("idle", "handoff", "limit", "abandoned")


_NUMBER = struct.Struct("<BQB")
_INCARNATION_TAG = training_pb2.Fact.INCARNATION_FIELD_NUMBER << 3 | 1  # fixed64
_SEQUENCE_TAG = training_pb2.Fact.SEQUENCE_FIELD_NUMBER << 3


class PackedFact(NamedTuple):
    """A fact serialized once, as tokens, spools and batches hold it. Sequence 0: not numbered yet."""

    key: str
    body: bytes
    incarnation: int = 0
    sequence: int = 0

    def numbered(self, incarnation: int, sequence: int) -> PackedFact:
        """The same with its number, which is added to the end of it."""
        number = _NUMBER.pack(_INCARNATION_TAG, incarnation, _SEQUENCE_TAG) + varint(sequence)
        return PackedFact(self.key, self.body + number, incarnation, sequence)


def pack(fact: training_pb2.Fact, body: bytes | None = None) -> PackedFact:
    """A fact as it travels; `body` is the fact serialized, where that is at hand."""
    body = fact.SerializeToString() if body is None else body
    return PackedFact(fact.key, body, fact.incarnation, fact.sequence)


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def started(
    dialogue_id: str, user: str, mode: dialogue_pb2.Mode.ValueType, fingerprint: str, continues: str = ""
) -> training_pb2.Fact:
    """A dialogue began; `continues` names the idle one it goes on with."""
    body = training_pb2.Started(user=user, mode=mode, continues=continues, domain_fingerprint=fingerprint)
    return training_pb2.Fact(key=f"s:{dialogue_id}", dialogue_id=dialogue_id, time_ms=now_ms(), started=body)


def decided(dialogue_id: str, decision_id: str) -> training_pb2.Fact:
    """A turn was answered; what is `decided` is for the caller to fill in."""
    return training_pb2.Fact(key=f"d:{decision_id}", dialogue_id=dialogue_id, time_ms=now_ms())


def ended(
    request: dialogue_pb2.EndRequest, dialogue_id: str, parent_id: str, history: list[str]
) -> training_pb2.Fact:
    """A dialogue ended after `parent_id`; the outcome is one of TERMINATED and TRUNCATED."""
    body = training_pb2.Ended(
        decision_id=parent_id, outcome=request.outcome, terminated=request.outcome in TERMINATED
    )
    if request.HasField("last_state"):
        body.last_state.CopyFrom(request.last_state)
        body.history.extend(history)
    key = f"e:{dialogue_id}:{parent_id}"
    return training_pb2.Fact(key=key, dialogue_id=dialogue_id, time_ms=now_ms(), ended=body)


def dialogue_reward(request: dialogue_pb2.EndRequest, dialogue_id: str, teacher: str) -> training_pb2.Fact:
    """The reward given with the end, as feedback on the whole dialogue."""
    time_ms = now_ms()
    body = training_pb2.Feedback(
        feedback_id=request.request_id,
        teacher=teacher,
        revision=request.revision or time_ms,
        reward=request.reward,
    )
    key = f"f:{request.request_id}"
    return training_pb2.Fact(key=key, dialogue_id=dialogue_id, time_ms=time_ms, feedback=body)


def from_feedback(request: dialogue_pb2.FeedbackRequest, teacher: str) -> list[training_pb2.Fact]:
    """The feedback or the delivery; a comment on a delivery is a feedback of its own."""
    kind = request.WhichOneof("kind")
    if kind not in ("overridden", "dropped"):
        return [_feedback(request, teacher)]
    facts = [_delivered(request)]
    if request.comment:
        facts.append(_feedback(request, teacher))
    return facts


def _feedback(request: dialogue_pb2.FeedbackRequest, teacher: str) -> training_pb2.Fact:
    time_ms = now_ms()
    body = training_pb2.Feedback(
        feedback_id=request.feedback_id,
        decision_id=request.decision_id,
        teacher=teacher,
        revision=request.revision or time_ms,
        comment=request.comment,
    )
    kind = request.WhichOneof("kind")
    if kind == "reward":
        body.reward = request.reward
    elif kind == "correction":
        body.correction = request.correction
    elif kind == "retraction":
        body.retraction = True
    else:
        body.comment_only = True
    key = f"f:{request.feedback_id}"
    return training_pb2.Fact(key=key, dialogue_id=request.dialogue_id, time_ms=time_ms, feedback=body)


def _delivered(request: dialogue_pb2.FeedbackRequest) -> training_pb2.Fact:
    time_ms = now_ms()
    body = training_pb2.Delivered(decision_id=request.decision_id, revision=request.revision or time_ms)
    if request.WhichOneof("kind") == "overridden":
        body.how = training_pb2.Delivered.OVERRIDDEN
        body.action = request.overridden.action
        if request.overridden.HasField("probability"):
            body.probability = request.overridden.probability
    else:
        body.how = training_pb2.Delivered.DROPPED
    key = f"v:{request.feedback_id}"
    return training_pb2.Fact(key=key, dialogue_id=request.dialogue_id, time_ms=time_ms, delivered=body)
