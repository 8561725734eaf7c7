"""From facts on the wire to rows of the journal."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from turnwise.v1 import training_pb2
from turnwise_learner.journal import KINDS

MAX_KEY_BYTES = 256
MAX_DIALOGUE_ID_BYTES = 128
MAX_DECISION_ID_BYTES = 32
MAX_REVISION = MAX_SEQUENCE = 2**63 - 1

_PREFIXES = {"started": "s:", "decided": "d:", "delivered": "v:", "feedback": "f:", "ended": "e:"}


class FactRow(NamedTuple):
    """A fact as the journal takes it: the columns of `facts` after `seq`."""

    key: str
    dialogue_id: str
    kind: int
    time_ms: int
    actor: str
    body: bytes


def refusal(fact: training_pb2.Fact) -> str | None:
    """Why a fact can never be journaled; None: it can. Never quotes what a person said."""
    kind = fact.WhichOneof("kind")
    if kind is None:
        return f"kind: got none that is known, wanted one of {', '.join(KINDS)}"
    prefix, key_bytes = _PREFIXES[kind], len(fact.key.encode())
    if not fact.key.startswith(prefix) or key_bytes == len(prefix):
        return f"key: got {fact.key[:64]!r}, wanted {prefix!r} and an id for a fact of kind {kind}"
    if key_bytes > MAX_KEY_BYTES:
        return f"key: got {key_bytes} bytes, wanted at most {MAX_KEY_BYTES}"
    id_bytes = len(fact.dialogue_id.encode())
    if not 1 <= id_bytes <= MAX_DIALOGUE_ID_BYTES:
        return f"dialogue_id: got {id_bytes} bytes, wanted 1 to {MAX_DIALOGUE_ID_BYTES}"
    if fact.sequence > MAX_SEQUENCE:
        return f"sequence: got {fact.sequence}, wanted at most {MAX_SEQUENCE}"
    return _refusal_of_body(kind, fact)


def _refusal_of_body(kind: str, fact: training_pb2.Fact) -> str | None:
    """What the trainer could not keep: it would meet the fact again at every start."""
    body = getattr(fact, kind)
    if kind == "decided" and not _is_decision_id(body.decision_id):
        got, wanted = len(body.decision_id.encode()), f"1 to {MAX_DECISION_ID_BYTES} of printable ASCII"
        return f"decided.decision_id: got {got} bytes, wanted {wanted}"
    if kind in ("feedback", "delivered") and body.revision > MAX_REVISION:
        return f"{kind}.revision: got {body.revision}, wanted at most {MAX_REVISION}"
    if kind == "feedback" and not math.isfinite(body.reward):
        return f"feedback.reward: got {body.reward}, wanted a finite number"
    return None


def _is_decision_id(text: str) -> bool:
    return 1 <= len(text) <= MAX_DECISION_ID_BYTES and text.isascii() and text.isprintable()


def to_rows(
    facts: Iterable[training_pb2.Fact], actor: str
) -> tuple[list[FactRow], list[training_pb2.Refused]]:
    """Rows of the facts that can be journaled, in order, and the refusals of the others."""
    rows, refused = [], []
    for fact in facts:
        reason = refusal(fact)
        if reason is None:
            kind = KINDS[fact.WhichOneof("kind") or ""]
            body = fact.SerializeToString()
            rows.append(FactRow(fact.key, fact.dialogue_id, kind, fact.time_ms, actor, body))
        else:
            refused.append(training_pb2.Refused(key=fact.key, reason=reason))
    return rows, refused
