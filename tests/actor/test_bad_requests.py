"""Every wrong field gets INVALID_ARGUMENT, and is named with the value got and the values wanted."""

from __future__ import annotations

import math
from typing import Any

import grpc
import grpc.aio
import pytest

from turnwise.v1 import dialogue_pb2 as pb

from .conftest import ActorFactory
from .frontend import refusal, seen
from .learner_end import LearnerEnd

ACTION = "an action of the domain: greet, ask_size, handoff"


def twice() -> pb.Observation:
    observation = seen(vip=True)
    observation.slots.add(name="vip", flag=False)
    return observation


def empty_slot() -> pb.Observation:
    observation = seen()
    observation.slots.add(name="vip")
    return observation


def odd_features() -> pb.Observation:
    return pb.Observation(features=b"12345")


@pytest.mark.parametrize(
    ("fields", "field", "got", "wanted"),
    [
        (
            {"observation": seen(intnet="order")},
            "observation.slots[intnet]",
            "unknown slot",
            "did you mean 'intent'?",
        ),
        ({"observation": seen(items="many")}, "observation.slots[items]", "'many'", "a number"),
        ({"observation": seen(items=math.nan)}, "observation.slots[items]", "nan", "finite"),
        ({"observation": seen(vip="yes")}, "observation.slots[vip]", "'yes'", "true or false"),
        ({"observation": seen(intent=3)}, "observation.slots[intent]", "3", "a string"),
        ({"observation": seen(features=(1.0,))}, "observation.features", "1", "2 float32"),
        ({"observation": seen(features=(1.0, math.inf))}, "observation.features[1]", "inf", "a number from"),
        ({"observation": seen(features=(math.nan, 0.0))}, "observation.features[0]", "nan", "a number from"),
        ({"observation": seen(features=())}, "observation.features", "nothing", "2 float32"),
        ({"observation": odd_features()}, "observation.features", "5 bytes", "4 bytes each"),
        ({"observation": seen("é" * 4097)}, "observation.text", "8194 bytes", "at most 8192 bytes"),
        ({"observation": twice()}, "observation.slots[vip]", "twice", "at most one"),
        ({"observation": empty_slot()}, "observation.slots[vip]", "no value", "category, number or flag"),
        ({"allowed": ["greet", "ask_sise"]}, "allowed", "'ask_sise'", f"{ACTION} (did you mean 'ask_size'?)"),
        ({"request_id": "r" * 65}, "request_id", "65 bytes", "1 to 64 bytes"),
        ({"request_id": ""}, "request_id", "0 bytes", "1 to 64 bytes"),
        ({"token": b""}, "token", "0 bytes", "1 to 65536 bytes"),
        ({"token": bytes(65_537)}, "token", "65537 bytes", "1 to 65536 bytes"),
    ],
)
async def test_a_turn(
    new_actor: ActorFactory, fields: dict[str, Any], field: str, got: str, wanted: str
) -> None:
    _, bot = await new_actor()
    token = (await bot.start()).token
    request = {"token": token, "observation": seen(), "request_id": "r", **fields}
    told = await refusal(bot.stub.Act(pb.ActRequest(**request)))
    check(told, field, got, wanted)


async def test_all_violations_of_a_turn_at_once(new_actor: ActorFactory, learner: LearnerEnd) -> None:
    _, bot = await new_actor()
    observation = seen(features=(math.nan,), items="x", intnet="y")
    request = pb.ActRequest(token=(await bot.start()).token, observation=observation, allowed=["a", "b"])
    told = await refusal(bot.stub.Act(request))
    assert set(told.violations) == {
        "observation.features",
        "observation.slots[items]",
        "observation.slots[intnet]",
        "allowed",
        "request_id",
    }
    assert not learner.of_kind("decided")


@pytest.mark.parametrize(
    ("fields", "field", "got", "wanted"),
    [
        ({"dialogue_id": ""}, "dialogue_id", "0 bytes", "1 to 128 bytes"),
        ({"dialogue_id": "ü" * 65}, "dialogue_id", "130 bytes", "1 to 128 bytes"),
        ({"user": "u" * 129}, "user", "129 bytes", "0 to 128 bytes"),
        ({"mode": 9}, "mode", "9", "TEACH, SERVE, SHADOW or EVALUATE"),
    ],
)
async def test_a_start(
    new_actor: ActorFactory, fields: dict[str, Any], field: str, got: str, wanted: str
) -> None:
    _, bot = await new_actor()
    told = await refusal(bot.stub.StartDialogue(pb.StartDialogueRequest(**{"dialogue_id": "d", **fields})))
    check(told, field, got, wanted)


@pytest.mark.parametrize(
    ("fields", "field", "got", "wanted"),
    [
        ({"reward": 1.5}, "reward", "1.5", "-1 to 1"),
        ({"reward": math.nan}, "reward", "nan", "-1 to 1"),
        ({"reward": -math.inf}, "reward", "-inf", "-1 to 1"),
        ({"correction": "ask_sise"}, "correction", "'ask_sise'", f"{ACTION} (did you mean 'ask_size'?)"),
        ({"correction": "greet", "decision_id": ""}, "decision_id", "''", "the correction is about"),
        ({"overridden": pb.Overridden(action="nope")}, "overridden.action", "'nope'", ACTION),
        (
            {"overridden": pb.Overridden(action="greet", probability=0.0)},
            "overridden.probability",
            "0.0",
            "(0, 1]",
        ),
        ({"dropped": pb.Dropped(), "decision_id": ""}, "decision_id", "''", "the dropped is about"),
        ({"reward": 1.0, "decision_id": "xyz"}, "decision_id", "'xyz'", "32 lower-case hex digits"),
        ({"reward": 1.0, "feedback_id": ""}, "feedback_id", "0 bytes", "1 to 64 bytes"),
        ({"reward": 1.0, "feedback_id": "f" * 65}, "feedback_id", "65 bytes", "1 to 64 bytes"),
        ({"reward": 1.0, "teacher": "t" * 129}, "teacher", "129 bytes", "0 to 128 bytes"),
        ({"reward": 1.0, "comment": "c" * 4097}, "comment", "4097 bytes", "0 to 4096 bytes"),
        ({"reward": 1.0, "dialogue_id": ""}, "dialogue_id", "0 bytes", "1 to 128 bytes"),
        (
            {"reward": 1.0, "revision": 2**63},
            "revision",
            "9223372036854775808",
            "at most 9223372036854775807",
        ),
        ({}, "kind", "none", "one of reward, correction, retraction"),
    ],
)
async def test_a_feedback(
    new_actor: ActorFactory, learner: LearnerEnd, fields: dict[str, Any], field: str, got: str, wanted: str
) -> None:
    _, bot = await new_actor()
    request = {"dialogue_id": "d", "decision_id": "0" * 32, "feedback_id": "f", "revision": 1, **fields}
    check(await refusal(bot.stub.GiveFeedback(pb.FeedbackRequest(**request))), field, got, wanted)
    assert not learner.facts


@pytest.mark.parametrize(
    ("fields", "field", "got", "wanted"),
    [
        ({"outcome": "done"}, "outcome", "'done'", "success, failure, goodbye (terminated) or idle"),
        ({"outcome": ""}, "outcome", "''", "success, failure, goodbye (terminated) or idle"),
        ({"reward": -2.0}, "reward", "-2.0", "-1 to 1"),
        ({"last_state": seen(items="x")}, "last_state.slots[items]", "'x'", "a number"),
        ({"last_state": odd_features()}, "last_state.features", "5 bytes", "4 bytes each"),
        ({"request_id": ""}, "request_id", "0 bytes", "1 to 64 bytes"),
        ({"revision": 2**64 - 1}, "revision", "18446744073709551615", "at most 9223372036854775807"),
    ],
)
async def test_an_end(
    new_actor: ActorFactory, learner: LearnerEnd, fields: dict[str, Any], field: str, got: str, wanted: str
) -> None:
    _, bot = await new_actor()
    told = await refusal(bot.end((await bot.start()).token, **{"outcome": "success", **fields}))
    check(told, field, got, wanted)
    assert not learner.of_kind("ended")


async def test_a_token_of_another_dialogue_does_not_vouch_for_feedback(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    turn = await bot.act((await bot.start("d1")).token)
    told = await refusal(bot.feedback(turn, token=(await bot.start("d2")).token, reward=1.0))
    assert (told.code, told.reason) == ("PERMISSION_DENIED", "TOKEN_FOREIGN")
    assert "'d2'" in told.message
    assert "'d1'" in told.message


async def test_a_message_over_the_size_limit_is_refused_by_grpc(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await bot.stub.Act(pb.ActRequest(token=bytes(4 * 1024 * 1024)))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def check(told: Any, field: str, got: str, wanted: str) -> None:
    assert told.code == "INVALID_ARGUMENT"
    assert list(told.violations) == [field]
    assert got in told.violations[field].split("; wanted ")[0]
    assert wanted in told.violations[field].split("; wanted ")[1]
    assert told.message == f"{field}: {told.violations[field]}"


@pytest.mark.parametrize("method", ["StartDialogue", "Act", "GiveFeedback", "EndDialogue", "DescribeDomain"])
async def test_bytes_that_are_no_message(
    new_actor: ActorFactory, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, bot = await new_actor()
    told = await refusal(bot.channel.unary_unary(f"/turnwise.v1.Dialogue/{method}", None, None)(b"\xff\xff"))
    check(told, "request", "2 bytes that are none", f"/turnwise.v1.Dialogue/{method} takes")
    assert not caplog.records


async def test_bytes_that_are_no_message_to_the_standard_services(
    new_actor: ActorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    _, bot = await new_actor()
    reflect = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    for call in (
        bot.channel.unary_unary("/grpc.health.v1.Health/Check", None, None)(b"\xff"),
        bot.channel.unary_stream("/grpc.health.v1.Health/Watch", None, None)(b"\xff").read(),
        bot.channel.stream_stream(reflect, None, None)(iter([b"\xff"])).read(),
    ):
        assert list((await refusal(call)).violations) == ["request"]
    assert not caplog.records
