"""Damaged tokens, policies, spools and domain files: refused with the error that is documented, or whole."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.wild import FUZZ, damaged, messages, trees
from turnwise.v1 import token_pb2, training_pb2
from turnwise_actor.errors import TokenError
from turnwise_actor.policy import Domain, DomainError, Policy, PolicyFileError, Problem, initial_policy
from turnwise_actor.spool import MAGIC, _decode, _encode
from turnwise_actor.tokens import KeyRing, Tokens

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart/domain.yaml"
DOMAIN = Domain.load(QUICKSTART)
POLICY = initial_policy(DOMAIN).to_bytes()
KEYS = [
    "name", "version", "state", "text", "encoder", "size", "slots", "features", "history", "actions", "id",
    "say",
    "rewards", "range", "neutral", "per_turn", "unrated", "correction", "wait", "dialogue", "idle_timeout",
    "max_turns", "learning", "gamma", "n_step", "hidden", "type", "min", "max",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    file = tmp_path_factory.mktemp("keys") / "token-keys.json"
    key = base64.b64encode(bytes(range(32))).decode()
    file.write_text(json.dumps({"active": "ab12cd34", "keys": {"ab12cd34": key}}))
    return Tokens(KeyRing(file, "shop"), "shop")


@FUZZ
@given(data=st.data())
def test_a_damaged_token_is_refused(tokens: Tokens, data: st.DataObject) -> None:
    state = data.draw(messages(token_pb2.TokenState))
    sealed = tokens.seal("dialogue", state)  # type: ignore[arg-type]
    assert tokens.open(sealed).state.SerializeToString() == state.SerializeToString()
    wild = data.draw(st.one_of(damaged(sealed), st.binary(max_size=200)))
    if wild != sealed:
        with pytest.raises(TokenError):
            tokens.open(wild)


@FUZZ
@given(wild=st.one_of(damaged(POLICY), st.binary(max_size=400)))
def test_a_damaged_policy_file_is_refused(wild: bytes) -> None:
    if wild != POLICY:
        with pytest.raises(PolicyFileError):
            Policy.from_bytes(wild)


@FUZZ
@given(facts=st.lists(messages(training_pb2.Fact), min_size=1, max_size=4), data=st.data())
def test_of_a_damaged_spool_what_comes_before_the_damage_is_read(
    facts: list[training_pb2.Fact], data: st.DataObject
) -> None:
    whole = MAGIC + _encode(facts)
    wild = data.draw(damaged(whole))
    read, good = _decode(wild)
    assert good <= len(wild)
    same = next((at for at, (a, b) in enumerate(zip(whole, wild, strict=False)) if a != b), len(wild))
    before, _ = _decode(whole[:same])
    # As bytes: a fact may hold NaN, which equals nothing.
    assert _encode(read).startswith(_encode(before))


@FUZZ
@given(tree=trees(KEYS))
def test_any_tree_is_a_domain_or_names_what_is_wrong(tree: Any) -> None:
    _domain_or_problems(lambda: Domain.from_mapping(tree))


@FUZZ
@given(data=st.data())
def test_a_domain_with_something_else_in_one_place_is_one_or_names_what_is_wrong(data: st.DataObject) -> None:
    tree = yaml.safe_load(QUICKSTART.read_text())
    place = tree
    while isinstance(place, dict | list) and place:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = data.draw(trees(KEYS))
            break
        place = place[key]
    _domain_or_problems(lambda: Domain.from_mapping(tree))


@FUZZ
@given(wild=damaged(QUICKSTART.read_bytes()))
def test_a_damaged_domain_file_is_a_domain_or_names_what_is_wrong(
    tmp_path_factory: pytest.TempPathFactory, wild: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "wild.yaml"
    file.write_bytes(wild)
    _domain_or_problems(lambda: Domain.load(file))


def _domain_or_problems(read: Any) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        domain = read()
    except DomainError as error:
        problems = error.problems
    else:
        assert Domain.from_json(domain.to_json()).fingerprint == domain.fingerprint
        return
    assert problems
    assert all(problem.field and problem.wanted for problem in problems)
