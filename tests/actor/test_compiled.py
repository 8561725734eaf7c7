"""The compiled turn path, and the reference it is held against: the same answers, to the bit."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import token_pb2, training_pb2
from turnwise_actor.compiled import FORWARD
from turnwise_actor.config import TokenConfig
from turnwise_actor.errors import BadRequestError, PreconditionError, TokenError
from turnwise_actor.facts import pack
from turnwise_actor.policy import Domain, Exploration, Network, NetworkSpec, Policy
from turnwise_actor.requests import read_act, read_converse
from turnwise_actor.tokens import KeyRing, Tokens

from .both_ways import NOW_MS, BothWays, needs_compiled
from .conftest import make_policy
from .frontend import seen

pytestmark = needs_compiled

EXPLORATIONS = [
    Exploration(serve_epsilon=0.0),
    Exploration(teach_epsilon=0.3),
    Exploration(teach_kind="softmax", teach_temperature=0.2, teach_epsilon=0.1),
]


def policy_of(domain: Domain, exploration: Exploration, seed: int = 0, version: str = "1.2") -> Policy:
    """One with a value of its own for every action, of which some are equal."""
    policy = make_policy(domain, version)
    rng = np.random.default_rng(seed)
    for name, value in policy.parameters.items():
        value[...] = rng.integers(-2, 3, value.shape) / 4
        if name == "norm.0.weight":
            value[...] = 1.0
    return replace(policy, exploration=exploration)


@pytest.fixture
def both(domain: Domain, key_file: Path, monkeypatch: pytest.MonkeyPatch) -> BothWays:
    return BothWays(domain, make_policy(domain), key_file, monkeypatch)


def state(**fields: Any) -> token_pb2.TokenState:
    fields = {
        "issued_ms": NOW_MS - 1000,
        "next_index": 3,
        "mode": pb.TEACH,
        "user": "ann",
        "decision_id": "ab" * 16,
        "history": ["greet", "ask_size"],
        "domain_fingerprint": "0" * 16,
        **fields,
    }
    return token_pb2.TokenState(**fields)


def request(token: bytes, observation: pb.Observation | None = None, **fields: Any) -> bytes:
    fields = {"request_id": "r1", **fields}
    return pb.ActRequest(token=token, observation=observation or seen(), **fields).SerializeToString()


def decided(number: int, **fields: Any) -> Any:
    body = training_pb2.Decided(decision_id=f"{number:032x}", index=number, action="greet")
    return pack(training_pb2.Fact(key=f"d:{number:032x}", dialogue_id="d", decided=body, **fields))


def test_a_plain_request_is_the_compiled_paths_own(both: BothWays) -> None:
    assert not isinstance(read_act(request(both.token(state()))), pb.ActRequest)
    (turn,) = both.answer([request(both.token(state()))])
    assert (turn.index, both.turns_compiled) == (3, 1)


@pytest.mark.parametrize("exploration", EXPLORATIONS, ids=["greedy", "epsilon", "softmax"])
@pytest.mark.parametrize("mode", [0, pb.TEACH, pb.SERVE, pb.SHADOW, pb.EVALUATE])
def test_every_mode_and_exploration(both: BothWays, exploration: Exploration, mode: int) -> None:
    both.install(policy_of(both.domain, exploration))
    token = both.token(state(mode=mode))
    for allowed in ([], ["handoff"], ["greet", "handoff"], list(both.domain.action_ids), ["greet", "greet"]):
        contents = [request(token, allowed=allowed, request_id=f"r{number}") for number in range(20)]
        actions = {turn.action for turn in both.answer(contents)}
        assert actions <= set(allowed or both.domain.action_ids)


OBSERVATIONS = [
    seen(),
    seen("", intent="order"),
    seen("Grüße, 你好 wörld", items=3.5, vip=True),
    seen("one two two", vip=False, items=-7.0, intent="nothing like it"),
    seen("x" * 4100, items=1e300, intent=""),
    seen("hello", (1e6, -1e6)),
    pb.Observation(features=bytes(8)),
]
BAD = [
    seen("hello", (float("nan"), 0.0)),
    seen("hello", (0.0, 1.1e6)),
    seen("hello", (0.0,)),
    seen("hello", ()),
    seen("x" * 8193),
    seen(intent=3.0),
    seen(items="three"),
    seen(items=float("inf")),
    seen(vip=1.0),
    seen(nobody="knows"),
]


@pytest.mark.parametrize("observation", OBSERVATIONS, ids=range(len(OBSERVATIONS)))
def test_every_kind_of_observation(both: BothWays, observation: pb.Observation) -> None:
    both.install(policy_of(both.domain, EXPLORATIONS[1]))
    (turn,) = both.answer([request(both.token(state()), observation)])
    assert isinstance(turn, pb.Turn)
    assert both.turns_compiled == 1


def test_observations_of_every_length_give_the_same_ids(both: BothWays) -> None:
    both.install(policy_of(both.domain, EXPLORATIONS[1]))
    turns = []
    for length in range(300):
        token = both.token(state(decision_id=f"{length:04x}" * 8))
        turns += both.answer([request(token, seen("x" * length))])
    assert len({turn.decision_id for turn in turns}) == both.turns_compiled == 300


@pytest.mark.parametrize("observation", BAD, ids=range(len(BAD)))
def test_what_the_domain_does_not_take_is_refused_alike(both: BothWays, observation: pb.Observation) -> None:
    assert both.answer([request(both.token(state()), observation)]) == [BadRequestError]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"request_id": ""}, BadRequestError),
        ({"request_id": "r" * 65}, BadRequestError),
        ({"request_id": "é" * 33}, BadRequestError),
        ({"allowed": ["nothing"]}, BadRequestError),
        ({"token": b""}, BadRequestError),
        ({"token": b"\1" + bytes(80)}, TokenError),
    ],
)
def test_a_bad_request_is_refused_alike(both: BothWays, fields: dict[str, Any], error: type) -> None:
    fields = {"token": both.token(state()), "observation": seen(), "request_id": "r1", **fields}
    assert both.answer([pb.ActRequest(**fields).SerializeToString()]) == [error]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"decision_id": "", "next_index": 0, "history": []}, pb.Turn),
        ({"user": "", "history": ["greet"] * 5}, pb.Turn),
        ({"history": ["gone", "handoff", "greet", "gone"]}, pb.Turn),
        ({"unrecorded": ["cd" * 16]}, pb.Turn),
        ({"issued_ms": NOW_MS + 299_000}, pb.Turn),
        ({"issued_ms": NOW_MS + 301_000}, PreconditionError),
        ({"issued_ms": NOW_MS - 31 * 60_000}, pb.Turn),
        ({"issued_ms": NOW_MS - 91 * 86_400_000}, PreconditionError),
        ({"next_index": 19}, pb.Turn),
        ({"next_index": 20}, PreconditionError),
    ],
)
def test_every_kind_of_token(both: BothWays, fields: dict[str, Any], wanted: type) -> None:
    (outcome,) = both.answer([request(both.token(state(**fields)))])
    assert outcome is wanted or isinstance(outcome, wanted)


def test_facts_of_a_token_are_sent_on_carried_on_or_known(both: BothWays) -> None:
    numbered = [decided(number).numbered(9, number + 1) for number in range(4)]
    both.renew(settled=[numbered[0].key], pending=numbered[1:2])
    # Settled, on its way, another actor's, one without a number.
    token = both.token(state(), known=[*numbered[:3], decided(7)])
    (turn,) = both.answer([request(token)])
    carried = [fact.key for fact in both.tokens.open(turn.token).state.unsettled]
    assert carried == [numbered[1].key, numbered[2].key, decided(7).key, f"d:{turn.decision_id}"]


def test_a_full_token_waits_for_the_disk(both: BothWays) -> None:
    token = both.token(state(), known=[decided(number) for number in range(8)])
    assert both.answer([request(token)]) == [None]


def test_a_batch_of_all_sorts_is_answered_each_for_itself(both: BothWays) -> None:
    both.install(policy_of(both.domain, EXPLORATIONS[1]))
    token, old = both.token(state()), both.token(state(next_index=20))
    contents = [
        *(
            request(token, observation, request_id=f"r{number}")
            for number, observation in enumerate(OBSERVATIONS)
        ),
        request(old),
        request(token, BAD[0]),
        request(token),
        request(token),
    ]
    outcomes = both.answer(contents)
    assert [isinstance(outcome, pb.Turn) for outcome in outcomes] == [
        *[True] * len(OBSERVATIONS),
        False,
        False,
        True,
        True,
    ]
    assert outcomes[-1].decision_id == outcomes[-2].decision_id


def test_a_token_is_continued_in_so_many_ways_and_no_more(both: BothWays) -> None:
    both.install(policy_of(both.domain, EXPLORATIONS[0]))
    token = both.token(state())
    outcomes = both.answer([request(token, seen(f"way {number}")) for number in range(70)])
    assert [outcome for outcome in outcomes if outcome is PreconditionError] == [PreconditionError] * 6


def test_continued_decisions_are_forgotten_alike(
    domain: Domain, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TokenConfig(max_branches=2, max_branched=3)
    both = BothWays(domain, make_policy(domain), key_file, monkeypatch, config)
    rng = np.random.default_rng(0)
    told = Counter[type]()
    for _ in range(100):
        parents = [f"{parent:02x}" * 16 for parent in rng.integers(8, size=4)]
        texts = [f"way {way}" for way in rng.integers(4, size=4)]
        outcomes = both.answer(
            [
                request(both.token(state(decision_id=parent)), seen(text))
                for parent, text in zip(parents, texts, strict=True)
            ]
        )
        told.update(outcome if isinstance(outcome, type) else type(outcome) for outcome in outcomes)
    assert told.keys() == {pb.Turn, PreconditionError}


def test_a_batch_may_have_tokens_of_several_keys(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("00000001", "00000002", "00000003")
    secrets = {name: base64.b64encode(bytes([place]) * 32).decode() for place, name in enumerate(names)}

    def file_of(active: str, *known: str) -> Path:
        file = tmp_path / f"{active}.json"
        file.write_text(json.dumps({"active": active, "keys": {name: secrets[name] for name in known}}))
        return file

    both = BothWays(domain, make_policy(domain), file_of(names[0], *names[:2]), monkeypatch)
    both.install(policy_of(domain, EXPLORATIONS[1]))
    others = [Tokens(KeyRing(file_of(name, name), domain.name), domain.name) for name in names[1:]]
    tokens = [sealed_by.seal("d", state()) for sealed_by in (both.tokens, *others)]
    outcomes = both.answer([request(token, request_id=f"r{place}") for place, token in enumerate(3 * tokens)])
    assert [isinstance(outcome, pb.Turn) for outcome in outcomes] == 3 * [True, True, False]


def test_nothing_is_left_behind(both: BothWays) -> None:
    """Turns that are answered, turns that are refused and no turns: what they took is given back."""
    both.install(policy_of(both.domain, EXPLORATIONS[1]))

    sorts = [*OBSERVATIONS[:4], *OBSERVATIONS[5:]]  # the long text takes too long here

    def ask() -> int:
        both.renew()
        for number in range(30):
            carried = [decided(2 * number), decided(2 * number + 1)]
            token = both.token(state(decision_id=f"{number:032x}"), known=carried)
            good = [request(token, what, request_id=f"r{number}") for what in sorts]
            bad = [request(token, what) for what in BAD]
            both.compiled.answer(list(map(read_act, [*good, *bad, request(token[:-1])])))
            with contextlib.suppress(DecodeError):
                read_act(good[0][:-1])
        both.renew()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        ask()
        before = ask()
        assert ask() - before < 2000
    finally:
        tracemalloc.stop()


def test_values_that_are_no_numbers_are_a_fault_told_alike(both: BothWays, caplog: Any) -> None:
    policy = policy_of(both.domain, EXPLORATIONS[0])
    policy.parameters["head.weight"][:] = 3e38
    policy.parameters["norm.0.bias"][:] = 9.0
    both.install(policy)
    (outcome,) = both.answer([request(both.token(state()))])
    assert outcome.__name__ == "InternalError"


# Reading.


def converse(**fields: Any) -> pb.ConverseRequest:
    act = pb.ActRequest(token=b"t", observation=seen(intent="greet"), request_id="é", allowed=["greet"])
    return pb.ConverseRequest(**{"correlation_id": 2**63, "timeout_ms": 5, "act": act, **fields})


def test_what_is_read_is_what_protobuf_reads() -> None:
    message = converse(also=[converse(correlation_id=0), converse(timeout_ms=0)])
    acts = read_converse(message.SerializeToString())
    assert isinstance(acts, list)
    for act, part in zip(acts, [message, *message.also], strict=True):
        assert (act.correlation_id, act.timeout_ms) == (part.correlation_id, part.timeout_ms)
        assert act.message() == part.act


@pytest.mark.parametrize(
    "message",
    [
        pb.ConverseRequest(correlation_id=1, end=pb.EndRequest(token=b"t")),
        pb.ConverseRequest(correlation_id=1),
        converse(also=[pb.ConverseRequest(feedback=pb.FeedbackRequest())]),
        converse(also=[converse(also=[converse()])]),
        converse(also=[converse()] * 256),
    ],
)
def test_other_messages_are_left_to_protobuf(message: pb.ConverseRequest) -> None:
    assert read_converse(message.SerializeToString()) == message


# The forward pass.


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize(
    "sizes", [(1, 1, (1,)), (128, 64, (256, 256)), (1025, 10, (128,)), (7, 70, (65, 3))], ids=str
)
def test_the_forward_pass_is_numpys_and_a_row_is_the_same_in_any_batch(
    activation: Any, layer_norm: bool, sizes: Any
) -> None:
    assert FORWARD is not None
    inputs, actions, hidden = sizes
    spec = NetworkSpec(inputs, actions, hidden, activation, layer_norm)
    rng = np.random.default_rng(0)
    parameters = {
        name: (rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in spec.parameter_shapes().items()
    }
    compiled, plain = Network(spec, parameters), Network(spec, parameters, compiled=False)
    assert compiled.forward is not None
    assert plain.forward is None
    obs = rng.normal(size=(33, inputs)).astype(np.float32)
    obs[rng.random(obs.shape) < 0.5] = 0.0
    obs[3:20, rng.random(inputs) < 0.9] = 0.0  # as hashed texts, whole places are 0
    alone = np.concatenate([compiled.q_values(row[None]) for row in obs])
    np.testing.assert_allclose(alone, plain.q_values(obs), rtol=1e-3, atol=1e-4)
    for begin in (0, 3):
        for end in range(begin + 1, len(obs) + 1):
            assert compiled.q_values(obs[begin:end]).tobytes() == alone[begin:end].tobytes()
    assert compiled.q_values(obs[:0]).shape == (0, actions)
    with pytest.raises(ValueError, match="obs"):
        compiled.forward.q_values(obs[:, 1:])


def test_a_row_that_is_no_number_spoils_no_other() -> None:
    assert FORWARD is not None
    spec = NetworkSpec(128, 64, (256,), "tanh", True)
    rng = np.random.default_rng(0)
    parameters = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in spec.parameter_shapes().items()
    }
    network = Network(spec, parameters)
    obs = rng.normal(size=(9, 128)).astype(np.float32)
    sound = network.q_values(obs)
    obs[[2, 8], 5] = np.nan
    spoilt = network.q_values(obs)
    assert np.isnan(spoilt[[2, 8]]).any(axis=1).all()
    rest = [0, 1, *range(3, 8)]
    assert spoilt[rest].tobytes() == sound[rest].tobytes()
