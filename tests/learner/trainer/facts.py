"""Builds facts and journal rows for tests, and a domain to read them with."""

import itertools
from collections.abc import Collection
from typing import Any

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.policy import Domain
from turnwise_learner.journal import KINDS, Row


def make_domain(wait_s: int = 0, state: dict[str, Any] | None = None, **learning: Any) -> Domain:
    return Domain.from_mapping(
        {
            "name": "desk",
            "state": state
            or {"text": {"encoder": "hashing", "size": 64}, "slots": {"vip": {"type": "bool"}}},
            "actions": [{"id": name, "say": name} for name in ("greet", "ask", "bye")],
            "rewards": {"wait": f"{wait_s}s"},
            "learning": learning,
        }
    )


class Journal:
    """A journal in memory: facts in, rows out."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.rows: list[Row] = []
        self._revision = itertools.count(1)

    def dialogues(self, dialogue_ids: Collection[str], through: int) -> list[Row]:
        return [r for r in self.rows if r.dialogue_id in dialogue_ids and r.seq <= through]

    def domain_json(self, fingerprint: str) -> str | None:
        return self.domain.to_json() if fingerprint == self.domain.fingerprint else None

    def add(self, dialogue_id: str = "d", time_ms: int = 0, key: str = "", **kind: Any) -> Row:
        key = key or str(len(self.rows))
        fact = training_pb2.Fact(key=key, dialogue_id=dialogue_id, time_ms=time_ms, **kind)
        name = fact.WhichOneof("kind")
        assert name is not None
        row = Row(len(self.rows) + 1, dialogue_id, KINDS[name], time_ms, fact, "")
        self.rows.append(row)
        return row

    def decided(
        self, decision_id: str, parent: str = "", action: str = "greet", text: str = "hi", **kw: Any
    ) -> Row:
        fields: dict[str, Any] = {"mode": dialogue_pb2.TEACH, "recorded": True} | {
            k: kw.pop(k)
            for k in ("mode", "recorded", "allowed", "history", "index", "observation")
            if k in kw
        }
        fields.setdefault("observation", dialogue_pb2.Observation(text=text))
        decided = training_pb2.Decided(
            decision_id=decision_id,
            parent_id=parent,
            action=action,
            domain_fingerprint=self.domain.fingerprint,
            **fields,
        )
        return self.add(decided=decided, **kw)

    def feedback(
        self,
        decision_id: str,
        teacher: str = "ann",
        revision: int = 0,
        dialogue_id: str = "d",
        **kind: Any,
    ) -> Row:
        revision = revision or next(self._revision)
        given = training_pb2.Feedback(
            feedback_id=f"{teacher}-{revision}",
            decision_id=decision_id,
            teacher=teacher,
            revision=revision,
            **kind,
        )
        return self.add(dialogue_id, feedback=given)

    def delivered(self, decision_id: str, how: str, action: str = "", **kw: Any) -> Row:
        delivered = training_pb2.Delivered(
            decision_id=decision_id, how=training_pb2.Delivered.How.Value(how), action=action
        )
        return self.add(delivered=delivered, **kw)

    def ended(
        self,
        decision_id: str,
        terminated: bool,
        last_text: str | None = None,
        dialogue_id: str = "d",
        time_ms: int = 0,
    ) -> Row:
        ended = training_pb2.Ended(decision_id=decision_id, outcome="success", terminated=terminated)
        if last_text is not None:
            ended.last_state.text = last_text
        return self.add(dialogue_id, time_ms, ended=ended)
