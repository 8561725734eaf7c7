from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import token_pb2, training_pb2
from turnwise_actor import facts
from turnwise_actor.policy import Domain
from turnwise_actor.tokens import Tokens

from .conftest import ActorFactory, eventually, make_policy, version_in_force
from .frontend import fresh, refusal, seen
from .learner_end import LearnerEnd


async def test_a_turn_tells_what_was_chosen_and_why(new_actor: ActorFactory, domain: Domain) -> None:
    _, bot = await new_actor()
    begun = await bot.start("d1")
    turn = await bot.act(begun.token, seen(intent="order", items=3, vip=True))
    assert (turn.dialogue_id, turn.index, turn.recorded) == ("d1", 0, True)
    assert turn.action in domain.action_ids
    assert turn.policy_version == pb.PolicyVersion(generation=1, number=1)
    assert turn.learned_through == 7
    assert turn.domain_fingerprint == domain.fingerprint == begun.domain.fingerprint
    assert len(bytes.fromhex(turn.decision_id)) == 16
    np.testing.assert_allclose(np.frombuffer(turn.q_values, "<f4"), [1.0, 0.0, 0.0])
    wanted = 0.5 + 0.5 / 3 if turn.action == "greet" else 0.5 / 3
    assert turn.probability == pytest.approx(wanted)


async def test_what_is_said_is_one_of_the_phrasings(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    token = (await bot.start()).token
    said = {(await bot.act(token, allowed=["ask_size"])).say for _ in range(30)}
    assert said == {"Which size?", "What size would you like?"}
    assert (await bot.act(token, allowed=["handoff"])).say == ""


async def test_what_is_not_allowed_is_never_chosen(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    token = (await bot.start()).token
    turns = [await bot.act(token, allowed=["ask_size", "handoff"]) for _ in range(20)]
    assert {turn.action for turn in turns} == {"ask_size", "handoff"}
    assert np.isnan(np.frombuffer(turns[0].q_values, "<f4")).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("mode", "explores"), [(pb.TEACH, True), (pb.SERVE, True), (pb.SHADOW, False), (pb.EVALUATE, False)]
)
async def test_only_teach_and_serve_explore(new_actor: ActorFactory, mode: pb.Mode, explores: bool) -> None:
    _, bot = await new_actor()
    token = (await bot.start(mode=mode)).token
    actions = Counter([(await bot.act(token)).action for _ in range(150)])
    assert (len(actions) > 1) == explores
    assert actions["greet"] > 75


async def test_two_actors_answer_alternate_turns_of_one_dialogue(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    bots = [(await new_actor())[1], (await new_actor())[1]]
    token, turns = (await bots[0].start("d1")).token, []
    for index in range(6):
        turns.append(await bots[index % 2].act(token, seen(f"word {index}")))
        token = turns[-1].token
    assert [turn.index for turn in turns] == list(range(6))
    await bots[1].end(token)
    decided = {fact.decided.decision_id: fact.decided for fact in learner.of_kind("decided")}
    assert set(decided) == {turn.decision_id for turn in turns}
    parents = [decided[turn.decision_id].parent_id for turn in turns]
    assert parents == ["", *(turn.decision_id for turn in turns[:-1])]
    assert list(decided[turns[3].decision_id].history) == [turns[1].action, turns[2].action]


async def test_a_retry_gives_the_same_decision_at_another_actor(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    (_, one), (_, other) = await new_actor(), await new_actor()
    for _ in range(8):
        token, request_id = (await one.start()).token, fresh("retried")
        turns = [
            await bot.act(token, seen("again", vip=True, items=2), request_id) for bot in (one, other, one)
        ]
        shown = {(turn.decision_id, turn.action, turn.say, turn.probability) for turn in turns}
        assert len(shown) == 1
    await eventually(lambda: len(learner.of_kind("decided")) == 8)


async def test_first_turns_of_two_dialogues_are_two_decisions(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    turns = [await bot.act((await bot.start()).token, allowed=["greet"]) for _ in range(2)]
    assert turns[0].decision_id != turns[1].decision_id


async def test_the_order_of_slots_does_not_change_a_decision(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    token = (await bot.start()).token
    one = await bot.act(token, seen(vip=True, items=1), "r", ["greet"])
    other = await bot.act(token, seen(items=1, vip=True), "r", ["greet"])
    assert one.decision_id == other.decision_id


async def test_a_decision_is_journaled_with_all_that_made_it(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain
) -> None:
    _, bot = await new_actor()
    observation = seen("two, please", (0.5, -1.0), intent="order")
    begun = await bot.start("d1", pb.SERVE)
    turn = await bot.act(begun.token, observation, allowed=["handoff", "greet"])
    [fact] = await eventually(lambda: learner.of_kind("decided"))
    decided = fact.decided
    assert (fact.key, fact.dialogue_id) == (f"d:{turn.decision_id}", "d1")
    assert decided.observation == observation
    assert decided.allowed == bytes([0b101])
    assert (decided.action, decided.index, decided.mode, decided.recorded) == (turn.action, 0, pb.SERVE, True)
    assert decided.domain_fingerprint == domain.fingerprint
    probabilities = struct.unpack("<3f", decided.probabilities)
    assert probabilities == pytest.approx((0.75, 0.0, 0.25))
    [began] = learner.of_kind("started")
    assert (began.key, began.started.user, began.started.mode) == ("s:d1", "ann", pb.SERVE)


async def test_a_policy_swapped_between_turns_answers_the_next(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain
) -> None:
    actor, bot = await new_actor()
    token = (await bot.start(mode=pb.EVALUATE)).token
    first = await bot.act(token)
    await learner.publish(make_policy(domain, "1.2", "handoff", learned_through=40))
    await eventually(lambda: version_in_force(actor) == "1.2")
    second = await bot.act(first.token)
    assert (first.action, second.action) == ("greet", "handoff")
    assert (second.policy_version.number, second.learned_through) == (2, 40)


async def test_a_full_dialogue_asks_to_be_ended(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    token = (await bot.start("d1")).token
    for _ in range(20):
        token = (await bot.act(token)).token
    told = await refusal(bot.act(token))
    assert (told.code, told.reason) == ("FAILED_PRECONDITION", "DIALOGUE_FULL")
    assert "max_turns" in told.message
    assert "end it" in told.message
    assert (await bot.end(token, "limit")).settled == pb.Receipt.LEARNER


def aged(tokens: Tokens, token: bytes, age_s: float) -> bytes:
    """The same token, made earlier."""
    opened = tokens.open(token)
    opened.state.issued_ms = facts.now_ms() - int(1000 * age_s)
    return tokens.seal(opened.dialogue_id, opened.state)


async def test_an_idle_dialogue_continues_as_a_linked_one(
    new_actor: ActorFactory, learner: LearnerEnd, tokens: Tokens
) -> None:
    (_, one), (_, other) = await new_actor(), await new_actor()
    before = await one.act((await one.start("d1", pb.SERVE)).token)
    idle = aged(tokens, before.token, 1801)
    turn = await one.act(idle, request_id="r")
    assert turn.dialogue_id.startswith("d1~")
    assert turn.index == 0
    retried = await other.act(idle, request_id="r")
    assert (retried.dialogue_id, retried.decision_id) == (turn.dialogue_id, turn.decision_id)
    await one.end((await other.act(turn.token)).token)
    began = {fact.dialogue_id: fact.started for fact in learner.of_kind("started")}
    assert began[turn.dialogue_id] == training_pb2.Started(
        user="ann", mode=pb.SERVE, continues="d1", domain_fingerprint=turn.domain_fingerprint
    )
    decided = learner.facts[f"d:{turn.decision_id}"].decided
    assert (decided.parent_id, list(decided.history)) == ("", [])


async def test_a_linked_id_is_at_most_128_bytes_and_can_be_linked_again(
    new_actor: ActorFactory, tokens: Tokens
) -> None:
    _, bot = await new_actor()
    token = (await bot.start("ü" * 64)).token
    names = []
    for _ in range(3):
        turn = await bot.act(aged(tokens, token, 1801))
        names.append(turn.dialogue_id)
        token = turn.token
    assert len(set(names)) == 3
    assert all(len(name.encode()) <= 128 for name in names)


async def test_feedback_to_a_turn_before_the_pause_may_bring_the_linked_token(
    new_actor: ActorFactory, learner: LearnerEnd, tokens: Tokens
) -> None:
    _, bot = await new_actor()
    before = await bot.act((await bot.start("d1")).token)
    after = await bot.act(aged(tokens, before.token, 1801))
    await bot.feedback(before, token=after.token, reward=1.0)
    [given] = learner.of_kind("feedback")
    assert given.dialogue_id == "d1"


async def test_a_token_of_an_older_domain_with_other_actions_goes_on(
    new_actor: ActorFactory, tokens: Tokens
) -> None:
    _, bot = await new_actor()
    state = token_pb2.TokenState(
        issued_ms=facts.now_ms(), next_index=3, history=["greet", "gone"], domain_fingerprint="0" * 16
    )
    turn = await bot.act(tokens.seal("d1", state))
    assert turn.index == 3


async def test_the_domain_is_described(new_actor: ActorFactory, domain: Domain) -> None:
    _, bot = await new_actor()
    told = await bot.stub.DescribeDomain(pb.DescribeDomainRequest())
    assert [action.id for action in told.actions] == list(domain.action_ids)
    assert [(slot.name, slot.type) for slot in told.slots] == [
        ("intent", "category"),
        ("items", "number"),
        ("vip", "bool"),
    ]
    assert (told.features, told.text, told.max_turns, told.idle_timeout_s) == (2, True, 20, 1800)


async def test_an_actor_without_a_policy_says_so_and_serves_once_it_has_one(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain
) -> None:
    actor, bot = await new_actor(policy_path=None)
    token = (await bot.start()).token
    told = await refusal(bot.act(token))
    assert (told.code, told.reason) == ("UNAVAILABLE", "NO_POLICY")
    await learner.publish(replace(make_policy(domain), learned_through=3))
    await eventually(lambda: actor.policies.current)
    assert (await bot.act(token)).learned_through == 3
