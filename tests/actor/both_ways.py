"""The same request answered by the compiled turn path and without it: nobody can tell which it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
from google.protobuf.message import DecodeError

from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import token_pb2, training_pb2
from turnwise_actor import facts
from turnwise_actor.access.client_access import Link
from turnwise_actor.config import TokenConfig, UplinkConfig
from turnwise_actor.dialogues import Dialogues
from turnwise_actor.errors import RequestError
from turnwise_actor.facts import PackedFact
from turnwise_actor.policy import Domain, Policy
from turnwise_actor.requests import TURNS, read_act
from turnwise_actor.spool import Spool
from turnwise_actor.tokens import KeyRing, Tokens
from turnwise_actor.turns import Request, Turns
from turnwise_actor.uplink import Uplink
from turnwise_actor.weights import Policies

NOW_MS = 1_700_000_000_000
INCARNATION = 7

needs_compiled = pytest.mark.skipif(TURNS is None, reason="the turn path is not compiled here")


class NoDisk:
    """A spool that has room; nothing is written in these tests."""

    full = False
    size_bytes = 0


@dataclass
class Side:
    """One actor's parts, without its sockets."""

    turns: Turns
    uplink: Uplink

    def answer(self, requests: Sequence[Any]) -> list[Any]:
        """What each is answered."""
        outcomes: list[Any] = []
        self.turns.answer([Request([request], outcomes.extend, came_at=0.0) for request in requests])
        return outcomes


class BothWays:
    """Two actors of one domain, one of them without the compiled turn path; time stands still."""

    def __init__(
        self,
        domain: Domain,
        policy: Policy,
        key_file: Path,
        monkeypatch: pytest.MonkeyPatch,
        config: TokenConfig | None = None,
    ) -> None:
        self._config = config or TokenConfig()
        monkeypatch.setattr(facts, "now_ms", lambda: NOW_MS)
        self.domain = domain
        self.tokens = Tokens(KeyRing(key_file, domain.name), domain.name)
        self._policies = Policies(domain)
        self._policies.install(policy)
        self.turns_compiled = 0
        """How many of the turns the compiled turn path has answered itself."""
        self.renew()

    def renew(self, settled: Sequence[str] = (), pending: Sequence[PackedFact] = ()) -> None:
        """Both know these facts and no others."""
        self.compiled, self.plain = self._side(), self._side()
        self.plain.turns._compiled = None
        for side in (self.compiled, self.plain):
            side.uplink._settled.add(settled)
            side.uplink.add(pending)

    def _side(self) -> Side:
        spool, link = cast(Spool, NoDisk()), cast(Link, None)
        uplink = Uplink(link, spool, UplinkConfig(), training_pb2.ActorReport, INCARNATION)
        dialogues = Dialogues(self.domain, self.tokens, self._policies, uplink, self._config)
        return Side(dialogues._turns, uplink)

    def install(self, policy: Policy) -> None:
        """A newer policy, for both."""
        self._policies.install(policy)

    def answer(self, contents: Sequence[bytes]) -> list[Any]:
        """Requests that are asked at once: what each is answered, which is the same both ways.

        A Turn, the class of a RequestError, or None for what has to wait for the disk.
        """
        try:
            messages = [pb.ActRequest.FromString(content) for content in contents]
        except DecodeError:
            with pytest.raises(DecodeError):
                list(map(read_act, contents))
            return []
        acts = list(map(read_act, contents))
        for act, message in zip(acts, messages, strict=True):
            assert isinstance(act, pb.ActRequest) or act.message() == message
        fast, slow = self._compiled(acts), self.plain.answer(messages)
        told = [self._same(*pair) for pair in zip(fast, slow, strict=True)]
        assert _sent(self.compiled.uplink) == _sent(self.plain.uplink)
        assert self.compiled.turns.counters == self.plain.turns.counters
        assert self.compiled.turns._branches.known() == self.plain.turns._branches.known()
        return told

    def _compiled(self, acts: list[Any]) -> list[Any]:
        outcomes_of = self.compiled.turns._outcomes

        def counted(acts: Any) -> Any:
            outcomes = outcomes_of(acts)
            self.turns_compiled += sum(isinstance(outcome, bytes) for outcome in outcomes)
            return outcomes

        with patch.object(self.compiled.turns, "_outcomes", counted):
            return self.compiled.answer(acts)

    def _same(self, fast: Any, slow: Any) -> Any:
        if isinstance(slow, RequestError):
            assert type(fast) is type(slow)
            assert fast.to_status() == slow.to_status()
            return type(slow)
        if not isinstance(slow, bytes):
            assert callable(fast)
            return None
        turns = [pb.Turn.FromString(fast), pb.Turn.FromString(slow)]
        opened = [self.tokens.open(turn.token) for turn in turns]
        assert opened[0].dialogue_id == opened[1].dialogue_id == turns[0].dialogue_id
        turns[0].token = turns[1].token = b""
        for fact in (*opened[0].state.unsettled, *opened[1].state.unsettled):
            _forget_number(fact)
        # As bytes: values of what is not allowed are NaN, which equals nothing; a wild fact may hold it, too.
        assert opened[0].state.SerializeToString() == opened[1].state.SerializeToString()
        assert turns[0].SerializeToString() == turns[1].SerializeToString()
        return pb.Turn.FromString(slow)

    def token(
        self, state: token_pb2.TokenState, dialogue_id: str = "d", known: Sequence[PackedFact] = ()
    ) -> bytes:
        """A genuine one."""
        return self.tokens.seal(dialogue_id, state, known)


def _sent(uplink: Uplink) -> dict[str, bytes]:
    """All that would go to the learner."""
    own = sorted(fact.sequence for fact in uplink._pending.values() if fact.incarnation == INCARNATION)
    assert own == list(range(1, len(own) + 1))
    facts = {key: training_pb2.Fact.FromString(fact.body) for key, fact in uplink._pending.items()}
    for fact in facts.values():
        _forget_number(fact)
    return {key: fact.SerializeToString(deterministic=True) for key, fact in facts.items()}


def _forget_number(fact: training_pb2.Fact) -> None:
    """Which of a batch's facts is numbered first is nobody's business."""
    if fact.incarnation == INCARNATION:
        fact.ClearField("sequence")
