"""What is recorded of a decision is what it was drawn from: in the turn, in the journal, in the long run."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import training_pb2
from turnwise_actor.policy import Domain, Exploration, ModeExploration, Policy, probabilities

from .conftest import ActorFactory, eventually, make_policy, version_in_force
from .frontend import Frontend, seen
from .learner_end import LearnerEnd

VALUES = np.array([0.4, 0.4, 0.1], np.float32)
SOFT = ModeExploration(0.05, "softmax", 0.2)


def make_exploring(domain: Domain, teach: ModeExploration, version: str = "1.2") -> Policy:
    """A policy of `VALUES`, whatever it sees."""
    policy = make_policy(domain, version)
    policy.parameters["head.bias"][:] = VALUES
    exploration = Exploration(
        teach_epsilon=teach.epsilon, teach_kind=teach.kind, teach_temperature=teach.temperature
    )
    return replace(policy, exploration=exploration)


async def publish(learner: LearnerEnd, actor: Any, policy: Policy) -> None:
    await learner.publish(policy)
    await eventually(lambda: version_in_force(actor) == str(policy.version))


def implied(teach: ModeExploration, allowed: tuple[str, ...], domain: Domain) -> np.ndarray:
    mask = np.array([not allowed or action in allowed for action in domain.action_ids])
    return probabilities(VALUES, mask, teach)


def recorded(fact: training_pb2.Fact) -> np.ndarray:
    return np.frombuffer(fact.decided.probabilities, "<f4")


def deviation(actions: Counter[str], p: np.ndarray, domain: Domain) -> float:
    """The largest, over actions, in standard deviations of so many draws."""
    draws = actions.total()
    counts = np.array([actions[action] for action in domain.action_ids])
    assert not counts[p == 0].any()
    spread = np.sqrt(np.maximum(draws * p * (1 - p), 1e-9))
    return float(np.abs((counts - draws * p) / spread).max())


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Always the same key: draws are seeded by it, so that a count is the same in every run."""
    file = tmp_path / "token-keys.json"
    keys = {"ab12cd34": base64.b64encode(bytes(range(32))).decode()}
    file.write_text(json.dumps({"keys": keys, "active": "ab12cd34"}))
    return file


EXPLORATIONS = [ModeExploration(), ModeExploration(0.3), ModeExploration(0.0, "softmax", 0.2), SOFT]


@pytest.mark.parametrize("teach", EXPLORATIONS, ids=str)
async def test_the_journal_has_the_vector_that_the_policy_implies(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain, teach: ModeExploration
) -> None:
    actor, bot = await new_actor()
    await publish(learner, actor, make_exploring(domain, teach))
    token = (await bot.start()).token
    masks: list[tuple[str, ...]] = [(), ("ask_size", "handoff"), ("handoff",)]
    turns = {mask: [await bot.act(token, allowed=mask) for _ in range(10)] for mask in masks}
    ids = {f"d:{turn.decision_id}" for given in turns.values() for turn in given}
    await eventually(lambda: ids <= set(learner.facts))
    for mask, given in turns.items():
        p = implied(teach, mask, domain)
        for turn in given:
            vector = recorded(learner.facts[f"d:{turn.decision_id}"])
            assert vector.tobytes() == p.astype("<f4").tobytes()
            assert turn.probability == vector[domain.action_index[turn.action]] > 0


async def answers(bot: Frontend, token: bytes, count: int, **fields: Any) -> list[pb.Turn]:
    """The turns of so many requests over one stream, 200 in flight."""
    call = bot.stub.Converse()
    turns: list[pb.Turn] = []
    for first in range(0, count, 200):
        for number in range(first, min(first + 200, count)):
            act = pb.ActRequest(token=token, observation=seen(), request_id=f"r{number}", **fields)
            await call.write(pb.ConverseRequest(correlation_id=number, act=act))
        while len(turns) < min(first + 200, count):
            turns.append((await call.read()).turn)
    await call.done_writing()
    return turns


async def test_answers_on_a_stream_come_as_often_as_recorded(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain
) -> None:
    actor, bot = await new_actor()
    await publish(learner, actor, make_exploring(domain, SOFT))
    token = (await bot.start("d")).token
    turns = await answers(bot, token, 3000)
    actions = Counter(turn.action for turn in turns)
    assert deviation(actions, implied(SOFT, (), domain), domain) < 4
    assert deviation(actions, implied(replace(SOFT, temperature=0.3), (), domain), domain) > 4


@pytest.mark.parametrize("mode", [pb.SHADOW, pb.EVALUATE])
async def test_shadow_and_evaluate_stay_greedy(
    new_actor: ActorFactory, learner: LearnerEnd, domain: Domain, mode: pb.Mode
) -> None:
    actor, bot = await new_actor()
    await publish(learner, actor, make_exploring(domain, SOFT))
    turn = await bot.act((await bot.start(mode=mode)).token, allowed=["greet", "handoff"])
    assert (turn.action, turn.probability) == ("greet", 1.0)


async def test_100_000_decisions_come_as_often_as_recorded(new_actor: ActorFactory, domain: Domain) -> None:
    """Through what decides every turn of the server, without sockets and tokens."""
    actor, bot = await new_actor()
    actor.policies.install(make_exploring(domain, SOFT))
    turns = actor._dialogues._turns
    token = (await bot.start("d")).token
    request = pb.ActRequest(token=token, observation=seen(), request_id="0")
    asked = turns._ask(request, came_at=0.0)
    actions = Counter[str]()
    for first in range(0, 100_000, 250):
        batch = [
            replace(asked, turn=pb.Turn(), request=pb.ActRequest(observation=seen(), request_id=str(number)))
            for number in range(first, first + 250)
        ]
        turns._decide(batch)
        actions.update(each.turn.action for each in batch)
    assert deviation(actions, implied(SOFT, (), domain), domain) < 4
    assert deviation(actions, implied(replace(SOFT, temperature=0.21), (), domain), domain) > 4
