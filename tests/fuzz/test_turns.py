"""Wild tokens and requests, answered by the compiled turn path and without it: the same of everything."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from tests.actor.both_ways import NOW_MS, BothWays, needs_compiled
from tests.fuzz.parsers import DOMAIN, KEY_FILE
from tests.fuzz.wild import Wild, inputs
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import token_pb2, training_pb2
from turnwise_actor.facts import pack
from turnwise_actor.policy import initial_policy
from turnwise_actor.requests import read_converse

pytestmark = [needs_compiled, pytest.mark.timeout(100_000)]


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BothWays:
    key_file = tmp_path / "keys.json"
    key_file.write_text(json.dumps(KEY_FILE))
    return BothWays(DOMAIN, initial_policy(DOMAIN), key_file, monkeypatch)


def good_state() -> token_pb2.TokenState:
    state = token_pb2.TokenState(
        issued_ms=NOW_MS - 1000,
        next_index=2,
        mode=pb.SERVE,
        user="ann",
        decision_id="ab" * 16,
        history=["greet"],
    )
    for number in range(2):
        decided = training_pb2.Decided(decision_id=f"{number:032x}", action="greet", index=number)
        state.unsettled.add(
            key=f"d:{number:032x}", dialogue_id="d", incarnation=9, sequence=number + 1, decided=decided
        )
    return state


def good_request(token: bytes) -> pb.ActRequest:
    seen = pb.Observation(text="hello", features=bytes(8))
    seen.slots.add(name="vip", flag=True)
    seen.slots.add(name="intent", category="greet")
    seen.slots.add(name="items", number=3)
    return pb.ActRequest(token=token, observation=seen, request_id="r", allowed=["greet", "handoff"])


def test_a_wild_turn_is_answered_alike(both: BothWays) -> None:
    told = Counter[str]()

    def draw(wild: Wild) -> bytes:
        state = wild.near(good_state()) if wild.chance(0.5) else good_state()
        if not set(state.decision_id) <= set("0123456789abcdef"):
            state.decision_id = ""  # nobody seals a token with what is no id
        facts = list(map(pack, good_state().unsettled))
        both.renew(
            settled=[fact.key for fact in facts if wild.chance(0.3)],
            pending=[fact for fact in facts if wild.chance(0.3)],
        )
        contents = []
        for number in range(wild.integer(1, 3)):
            dialogue_id = wild.random.choice(("d", "é", f"d{number}"))
            request = good_request(both.tokens.seal(dialogue_id, state))
            if wild.chance(0.5):
                request = wild.near(request)
            content = request.SerializeToString()
            contents.append(wild.damaged(content) if wild.chance(0.1) else content)
        told.update(_kind(outcome) for outcome in both.answer(contents))
        return b"".join(contents)

    for _ in inputs("turn", draw):
        pass
    assert {"Turn", "BadRequestError", "TokenError"} <= set(told)
    assert both.turns_compiled > told.total() / 5


def _kind(outcome: Any) -> str:
    return "disk" if outcome is None else getattr(outcome, "__name__", type(outcome).__name__)


def test_a_wild_message_is_read_alike() -> None:
    plain = 0

    def draw(wild: Wild) -> bytes:
        nonlocal plain
        message = pb.ConverseRequest(correlation_id=wild.integer(0, 2**64 - 1), act=good_request(b"token"))
        message.also.add(correlation_id=7, timeout_ms=wild.integer(0, 2**32 - 1), act=good_request(b"other"))
        if wild.chance(0.5):
            message = wild.near(message) if wild.chance(0.8) else wild.message(pb.ConverseRequest)
        content = message.SerializeToString()
        if wild.chance(0.5):
            content = wild.damaged(content)
        try:
            wanted = pb.ConverseRequest.FromString(content)
        except DecodeError:
            with pytest.raises(DecodeError):
                read_converse(content)
            return content
        read = read_converse(content)
        if isinstance(read, pb.ConverseRequest):
            assert read.SerializeToString() == wanted.SerializeToString()
            return content
        plain += 1
        assert len(read) == 1 + len(wanted.also)
        for act, part in zip(read, [wanted, *wanted.also], strict=True):
            assert (act.correlation_id, act.timeout_ms) == (part.correlation_id, part.timeout_ms)
            assert act.message().SerializeToString() == part.act.SerializeToString()
        return content

    for _ in inputs("plain message", draw):
        pass
    assert plain
