"""From facts on the wire to rows of the journal."""

from collections.abc import Iterable
from typing import NamedTuple

from turnwise.v1 import training_pb2
from turnwise_learner.journal import KINDS

MAX_KEY_BYTES = 256
MAX_DIALOGUE_ID_BYTES = 128

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
    if kind == "decided" and not fact.decided.decision_id:
        return "decided.decision_id: got none, wanted the decision's id"
    return None


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
