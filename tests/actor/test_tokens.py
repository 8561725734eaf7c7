from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import os
import stat
import time
import tracemalloc
from pathlib import Path

import pytest

from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import token_pb2
from turnwise_actor import facts
from turnwise_actor.branches import Branches
from turnwise_actor.config import ActorConfig
from turnwise_actor.errors import PreconditionError, TokenError
from turnwise_actor.policy import Domain
from turnwise_actor.tokens import KeyFileError, KeyRing, Tokens, rotate_keys

from .conftest import DOMAIN, ActorFactory, eventually, write_keys
from .frontend import Frontend, refusal, seen
from .learner_end import LearnerEnd
from .test_turns import aged

DAY_S = 86_400


async def refused_by_all(bot: Frontend, token: bytes) -> set[tuple[str, str]]:
    """Code and reason of the refusals of every call that takes a token."""
    feedback = pb.FeedbackRequest(dialogue_id="d1", token=token, feedback_id="f", reward=1.0)
    calls = (bot.act(token), bot.end(token), bot.stub.GiveFeedback(feedback))
    told = [await refusal(call) for call in calls]
    return {(each.code, each.reason) for each in told}


async def test_no_byte_of_a_token_can_be_altered(new_actor: ActorFactory, tokens: Tokens) -> None:
    token = tokens.seal("d1", token_pb2.TokenState(issued_ms=1, user="ann"))
    for index in range(len(token)):
        altered = bytearray(token)
        altered[index] ^= 1
        with pytest.raises(TokenError):
            tokens.open(bytes(altered))
    for length in range(len(token)):
        with pytest.raises(TokenError):
            tokens.open(token[:length])


async def test_forged_and_altered_tokens_are_refused_and_train_nothing(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    _, bot = await new_actor()
    turn = await bot.act((await bot.start("d1")).token)
    await eventually(lambda: len(learner.facts) == 2)
    altered = turn.token[:-1] + bytes([turn.token[-1] ^ 1])
    for token in (altered, b"\x01" + os.urandom(4), b"no token at all, however long it may be"):
        assert await refused_by_all(bot, token) == {("PERMISSION_DENIED", "TOKEN_INVALID")}
    assert len(learner.facts) == 2


async def test_the_token_of_another_dialogue_cannot_be_grafted(tokens: Tokens) -> None:
    token = tokens.seal("d1", token_pb2.TokenState(issued_ms=1))
    with pytest.raises(TokenError) as refused:
        tokens.open(token.replace(b"d1", b"d2", 1))
    assert refused.value.reason == "TOKEN_INVALID"


async def test_a_token_of_another_domain_under_the_same_keys_is_foreign(
    new_actor: ActorFactory, tmp_path: Path
) -> None:
    other_domain = tmp_path / "other.yaml"
    other_domain.write_text(DOMAIN.replace("name: shop", "name: bank"))
    (_, shop), (_, bank) = await new_actor(), await new_actor(domain_file=other_domain)
    token = (await bank.start("d1")).token
    assert await refused_by_all(shop, token) == {("PERMISSION_DENIED", "TOKEN_FOREIGN")}


async def test_a_token_under_keys_of_another_deployment_is_foreign(
    new_actor: ActorFactory, tmp_path: Path
) -> None:
    (_, ours), (_, theirs) = (
        await new_actor(),
        await new_actor(key_file=write_keys(tmp_path / "k2", "00000001")),
    )
    token = (await theirs.start("d1")).token
    assert await refused_by_all(ours, token) == {("PERMISSION_DENIED", "TOKEN_FOREIGN")}


async def test_a_forged_key_of_the_same_name_is_no_use(
    tokens: Tokens, domain: Domain, tmp_path: Path
) -> None:
    forger = Tokens(KeyRing(write_keys(tmp_path / "forged", "ab12cd34"), domain.name), domain.name)
    with pytest.raises(TokenError) as refused:
        tokens.open(forger.seal("d1", token_pb2.TokenState()))
    assert refused.value.reason == "TOKEN_INVALID"


async def test_an_expired_token_is_refused_by_act_alone_and_its_facts_are_journaled(
    new_actor: ActorFactory, learner: LearnerEnd, tokens: Tokens
) -> None:
    (_, one), (_, other) = await new_actor(learner_address="127.0.0.1:1"), await new_actor()
    turn = await one.act((await one.start("d1")).token)
    expired = aged(tokens, turn.token, 91 * DAY_S)
    told = await refusal(other.act(expired))
    assert (told.code, told.reason) == ("FAILED_PRECONDITION", "TOKEN_EXPIRED")
    assert "91.0 days" in told.message
    await eventually(lambda: set(learner.facts) == {"s:d1", f"d:{turn.decision_id}"})
    assert (await other.feedback(turn, token=expired, reward=1.0)).settled == pb.Receipt.LEARNER
    assert (await other.end(expired)).settled == pb.Receipt.LEARNER


async def test_five_minutes_between_clocks_are_forgiven(new_actor: ActorFactory, tokens: Tokens) -> None:
    _, bot = await new_actor()
    token = (await bot.start("d1")).token
    for age_s in (90 * DAY_S + 290, -290):
        assert (await bot.act(aged(tokens, token, age_s))).recorded
    for age_s in (90 * DAY_S + 310, -310):
        assert (await refusal(bot.act(aged(tokens, token, age_s)))).reason == "TOKEN_EXPIRED"


async def test_keys_are_rotated_without_a_restart(
    new_actor: ActorFactory, key_file: Path, domain: Domain
) -> None:
    (_, one), (_, other) = await new_actor(), await new_actor()
    old = (await one.start("d1")).token
    write_keys(key_file, "00000002")
    renewed = Tokens(KeyRing(key_file, domain.name), domain.name)
    sealed_with_the_new = renewed.seal("d1", token_pb2.TokenState(issued_ms=facts.now_ms()))
    assert (await one.act(sealed_with_the_new)).index == 0, "a key that came later is found at once"
    assert (await other.act(old)).index == 0, "a retired key goes on opening"


def test_a_new_key_seals_when_all_actors_had_time_to_learn_it(key_file: Path, domain: Domain) -> None:
    now = 0.0
    ring = KeyRing(key_file, domain.name, clock=lambda: now)
    write_keys(key_file, "00000002")
    sealing = {}
    for now in (0.0, 1.0, 60.9, 61.0, 200.0):
        sealing[now] = ring.active.name
    assert sealing == {
        0.0: "ab12cd34",
        1.0: "ab12cd34",
        60.9: "ab12cd34",
        61.0: "00000002",
        200.0: "00000002",
    }


def test_a_key_that_is_taken_out_of_the_file_seals_no_more(key_file: Path, domain: Domain) -> None:
    now = 0.0
    ring = KeyRing(key_file, domain.name, clock=lambda: now)
    secret = base64.b64encode(bytes(32)).decode()
    key_file.write_text(json.dumps({"active": "00000002", "keys": {"00000002": secret}}))
    now = 1.0
    assert ring.active.name == "00000002"


async def test_a_rotated_key_opens_for_as_long_as_tokens_may_be_old_and_not_after(
    key_file: Path, domain: Domain
) -> None:
    now = time.time()
    ring = KeyRing(key_file, domain.name, clock=lambda: now, now=lambda: now)
    tokens = Tokens(ring, domain.name)
    old = tokens.seal("d1", token_pb2.TokenState(user="ann"))
    assert rotate_keys(key_file, now) == 1
    now += 1
    assert tokens.seal("d2", token_pb2.TokenState())[1:5] == old[1:5], "others may not have the new one yet"
    now += 60
    new = tokens.seal("d2", token_pb2.TokenState(user="ben"))
    assert (old[1:5] != new[1:5], tokens.open(old).state.user, tokens.open(new).state.user) == (
        True,
        "ann",
        "ben",
    )
    now += 90 * DAY_S - 60
    assert tokens.open(old).state.user == "ann"
    now += 361
    with pytest.raises(TokenError) as refused:
        tokens.open(old)
    assert refused.value.reason == "TOKEN_FOREIGN"
    assert tokens.open(new).state.user == "ben", "the active key has no age"
    assert rotate_keys(key_file, now) == 1, "the first is gone, the second is kept"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


def test_a_malformed_key_file_is_not_rotated(key_file: Path) -> None:
    key_file.write_text('{"active": "xyz"}')
    with pytest.raises(KeyFileError, match="malformed"):
        rotate_keys(key_file)
    assert key_file.read_text() == '{"active": "xyz"}'


async def test_a_request_sent_again_and_a_token_used_again_train_nothing_twice(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    (_, one), (_, other) = await new_actor(), await new_actor()
    token = (await one.start("d1")).token
    turns = [await bot.act(token, request_id="r1") for bot in (one, other, one)]
    assert len({turn.decision_id for turn in turns}) == 1
    for bot in (one, other, one):
        await bot.feedback(turns[0], feedback_id="f1", reward=1.0)
        await bot.end(turns[0].token, request_id="e1", reward=1.0)
    await eventually(lambda: len(learner.facts) == 5)
    assert set(learner.facts) == {
        "s:d1",
        f"d:{turns[0].decision_id}",
        "f:f1",
        "f:e1",
        f"e:d1:{turns[0].decision_id}",
    }


async def test_one_token_has_a_bounded_number_of_branches(
    new_actor: ActorFactory, config: ActorConfig, learner: LearnerEnd
) -> None:
    _, bot = await new_actor(token=dataclasses.replace(config.token, max_branches=3))
    turn = await bot.act((await bot.start("d1")).token)
    branches = [await bot.act(turn.token, seen(f"way {n}"), request_id=f"r{n}") for n in range(3)]
    told = await refusal(bot.act(turn.token, seen("one more")))
    assert (told.code, told.reason) == ("FAILED_PRECONDITION", "TOKEN_BRANCHES")
    again = await bot.act(turn.token, seen("way 1"), request_id="r1")
    assert again.decision_id == branches[1].decision_id, "a retry is no new branch"
    assert (await bot.act(branches[0].token)).index == 2, "and each of them goes on"
    await eventually(lambda: len(learner.of_kind("decided")) == 5)


def test_branches_are_forgotten_the_oldest_first(config: ActorConfig) -> None:
    branches = Branches(dataclasses.replace(config.token, max_branches=1, max_branched=2))
    for parent in ("a", "b", "a", "c", "a", "d"):  # b is the one used longest ago
        branches.add("d1", 16 * f"{parent}0", 16 * f"{parent}1")
    for parent in ("a", "d"):
        with pytest.raises(PreconditionError):
            branches.add("d1", 16 * f"{parent}0", 32 * "f")
    branches.add("d1", 16 * "b0", 32 * "f")


@pytest.mark.parametrize("continued", range(10, 30))
def test_as_many_decisions_as_promised_are_remembered_for_their_branches(
    config: ActorConfig, continued: int
) -> None:
    branches = Branches(dataclasses.replace(config.token, max_branches=2, max_branched=10))
    ids = [hashlib.blake2b(bytes([number]), digest_size=16).hexdigest() for number in range(continued)]
    for parent in ids:
        for child in "01":
            branches.add("d1", parent, 32 * child)
    for parent in ids[-10:]:
        branches.add("d1", parent, 32 * "1")
        with pytest.raises(PreconditionError):
            branches.add("d1", parent, 32 * "f")


def test_a_decision_remembered_for_its_branches_costs_a_hundred_bytes(config: ActorConfig) -> None:
    branches = Branches(config.token)
    tracemalloc.start()
    for number in range(5000):
        branches.add(f"dialogue {number:032}", f"{number:032x}", f"{number + 1:032x}")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / 5000 < 150


def test_a_key_file_that_breaks_leaves_the_keys_as_they_were(
    key_file: Path, domain: Domain, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    ring = KeyRing(key_file, domain.name, clock=lambda: now)
    key_file.write_text("{")
    now = 1.0
    with caplog.at_level(logging.ERROR):
        assert ring.active.name == "ab12cd34"
    assert str(key_file) in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"active": "ab12cd34", "keys": {}}',
        '{"active": "ab12cd34", "keys": {"ab12cd34": "c2hvcnQ="}}',
        '{"active": "ab12cd34", "keys": {"ab12cd34": "not base64!"}}',
        '{"active": "xyz", "keys": {"xyz": "' + base64.b64encode(bytes(32)).decode() + '"}}',
    ],
)
def test_a_wrong_key_file_is_named_with_what_is_wanted(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)
    with pytest.raises(KeyFileError, match=r"keys\.json: malformed .* wanted \{\"active\""):
        KeyRing(file, "shop")


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"none\.json: cannot be read"):
        KeyRing(tmp_path / "none.json", "shop")


async def test_a_token_carries_at_most_eight_facts_and_then_waits_for_the_disk(
    new_actor: ActorFactory, learner: LearnerEnd, tokens: Tokens
) -> None:
    actor, bot = await new_actor(learner_address="127.0.0.1:1")
    token, counts = (await bot.start("d1")).token, []
    for index in range(19):
        token = (await bot.act(token, seen(f"word {index}"))).token
        counts.append(len(tokens.open(token).state.unsettled))
    assert counts == [2, 3, 4, 5, 6, 7, 8, *range(1, 9), *range(1, 5)]
    assert actor.spool.size_bytes > 0


async def test_a_token_carries_at_most_16_kilobytes_of_facts(new_actor: ActorFactory, tokens: Tokens) -> None:
    _, bot = await new_actor(learner_address="127.0.0.1:1")
    token, counts = (await bot.start("d1")).token, []
    for index in range(6):
        token = (await bot.act(token, seen(f"{index}" * 6000))).token
        unsettled = tokens.open(token).state.unsettled
        assert sum(fact.ByteSize() for fact in unsettled) <= 16_384
        counts.append(len(unsettled))
    assert counts == [2, 3, 1, 2, 1, 2]


async def test_a_fact_larger_than_a_token_may_carry_goes_to_the_disk(
    new_actor: ActorFactory, config: object, tokens: Tokens
) -> None:
    limits = dataclasses.replace(config.token, max_fact_bytes=1000)  # type: ignore[attr-defined]
    actor, bot = await new_actor(learner_address="127.0.0.1:1", token=limits)
    turn = await bot.act((await bot.start("d1")).token, seen("x" * 2000))
    assert turn.recorded
    assert not tokens.open(turn.token).state.unsettled
    assert actor.spool.size_bytes > 2000


async def test_a_turn_for_which_memory_has_no_room_waits_for_the_disk(
    new_actor: ActorFactory, learner: LearnerEnd, config: ActorConfig
) -> None:
    uplink = dataclasses.replace(config.uplink, max_pending_facts=4, ack_timeout_s=60.0)
    actor, bot = await new_actor(uplink=uplink)
    await eventually(lambda: actor.uplink.connected)
    learner.answering.clear()
    turns = [await bot.act((await bot.start(f"d{number}")).token) for number in range(8)]
    assert all(turn.recorded for turn in turns)
    assert actor.spool.size_bytes
    learner.answering.set()
    # Although no token comes back.
    await eventually(lambda: {f"d:{turn.decision_id}" for turn in turns} <= set(learner.facts))


async def test_settled_facts_leave_the_token(
    new_actor: ActorFactory, learner: LearnerEnd, tokens: Tokens
) -> None:
    _, bot = await new_actor()
    turn = await bot.act((await bot.start("d1")).token)
    await eventually(lambda: len(learner.facts) == 2)
    unsettled = tokens.open(turn.token).state.unsettled
    for _ in range(50):
        unsettled = tokens.open((await bot.act(turn.token)).token).state.unsettled
        if len(unsettled) == 1:
            break
    assert [fact.WhichOneof("kind") for fact in unsettled] == ["decided"]
