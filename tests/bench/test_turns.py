"""What the figures of the benchmark of turns are made of."""

import numpy as np
import pytest

import turns
from loads import Rotation, Session
from open_dialogues import Costs, ratio_of
from serve_peer import Bot, Lean, probabilities
from swaps import Answers, delays_p99_ms
from turnwise.v1 import dialogue_pb2 as pb
from turnwise_actor.policy import ModeExploration, NetworkSpec, Policy, PolicyVersion
from turnwise_actor.policy import probabilities as actors_probabilities

RNG = np.random.default_rng(0)


def policy(layer_norm: bool = True) -> Policy:
    spec = NetworkSpec(inputs=5, actions=4, hidden=(8, 7), layer_norm=layer_norm)
    parameters = {
        name: RNG.standard_normal(shape).astype(np.float32) for name, shape in spec.parameter_shapes().items()
    }
    return Policy(PolicyVersion(1, 1), 0, "0" * 16, spec, parameters)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_the_peer_has_the_values_of_the_actors_network(layer_norm: bool) -> None:
    one = policy(layer_norm)
    lean = Lean(one.spec, one.parameters)
    for obs in RNG.standard_normal((20, 5)).astype(np.float32):
        np.testing.assert_allclose(lean.q_values(obs), one.network.q_values(obs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_the_peer_explores_as_the_actor_does(epsilon: float) -> None:
    for q in RNG.integers(-2, 3, (50, 6)).astype(np.float32):
        allowed = RNG.random(6) < 0.6
        allowed[RNG.integers(6)] = True
        np.testing.assert_allclose(
            probabilities(q, allowed, epsilon),
            actors_probabilities(q, allowed, ModeExploration(epsilon)),
            atol=1e-6,
        )


async def test_the_peer_answers_with_an_allowed_action_and_the_token_it_was_given() -> None:
    bot = Bot(policy().to_bytes())
    seen = pb.Observation(features=RNG.standard_normal(5).astype("<f4").tobytes())
    request = pb.ActRequest(token=b"sealed", observation=seen, allowed=["action_1", "action_3"])
    answers = [await bot.Act(request) for _ in range(20)]
    assert {turn.action for turn in answers} <= {"action_1", "action_3"}
    assert {turn.token for turn in answers} == {b"sealed"}
    values = np.frombuffer(answers[0].q_values, "<f4")
    assert np.isnan(values).tolist() == [True, False, True, False]


def test_dialogues_of_a_rotation_speak_in_turn_and_keep_their_own_tokens() -> None:
    talks = [Session(b"a0"), Session(b"b0")]
    rotation = Rotation(talks)
    asked = []
    for number in range(1, 5):
        asked.append(rotation.request().token)
        rotation.token = asked[-1][:1] + b"%d" % number
    assert asked == [b"a0", b"b0", b"a1", b"b2"]
    assert [talk.turns for talk in talks] == [2, 2]


def test_the_journals_cost_is_not_in_the_ratio_of_open_dialogues() -> None:
    few, many = Costs(), Costs()
    for costs, actor, trainer in ((few, 1.0, 1.0), (many, 1.0, 3.0)):
        costs.add({"actor": actor, "trainer": trainer, "service": 99 * trainer}, 1000)
    assert ratio_of(many, few) == pytest.approx(2.0)
    assert few.medians()["actor"] == pytest.approx(1000.0)


def test_the_delay_of_swaps_is_what_an_actor_without_them_does_not_have() -> None:
    slow_ends = {"quiet": 2.0, "swapping": 9.0, "unmoved_quiet": 3.0, "unmoved": 5.0}
    delays = delays_p99_ms({name: Answers(ms=[1.0] * 98 + [end] * 2) for name, end in slow_ends.items()})
    assert delays == {
        "swap_delay_p99_ms": pytest.approx(4.0),
        "publishing_delay_p99_ms": pytest.approx(2.0),
        "swap_and_publishing_delay_p99_ms": pytest.approx(7.0),
    }


def test_a_goal_is_met_on_its_own_side_and_what_was_not_measured_is_not_missed() -> None:
    assert turns.met({})
    assert turns.met({"stream_vs_echo": 0.65, "memory_vs_serve": 0.4, "open_dialogues_100k": 1.0})
    assert not turns.met({"stream_vs_echo": 0.6})
    assert not turns.met({"open_dialogues_100k": 1.2})


def test_a_short_run_does_not_pass_for_a_hundred_thousand_open_dialogues() -> None:
    assert turns.FULL.open_key in turns.AT_MOST
    assert turns.SHORT.open_key not in turns.AT_MOST
