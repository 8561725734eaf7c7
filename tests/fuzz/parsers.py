"""Everything that reads what others wrote, without a socket: what is drawn for it, and what must hold.

Each parser draws one input, hands it to the product, and returns it. Whatever the product raises beyond the
error that is documented, and whatever does not hold, is a find.
"""

from __future__ import annotations

import base64
import json
import struct
import tempfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
import yaml

from tests.fuzz.wild import Wild, as_json
from turnwise._errors import TurnwiseError, error_from_status
from turnwise._tokens import token_from_str
from turnwise.v1 import dialogue_pb2, status_pb2, token_pb2, training_pb2
from turnwise_actor.access.credentials import CredentialFileError, read_credentials
from turnwise_actor.checks import Checks
from turnwise_actor.errors import BadRequestError, TokenError
from turnwise_actor.facts import pack
from turnwise_actor.policy import (
    Domain,
    DomainError,
    Encoder,
    Policy,
    PolicyFileError,
    Problem,
    initial_policy,
)
from turnwise_actor.policy.policy_file import _digest
from turnwise_actor.spool import MAGIC, _decode, _encode
from turnwise_actor.tokens import KeyFileError, KeyRing, Tokens
from turnwise_learner.journal import KINDS, Row
from turnwise_learner.service.facts import refusal
from turnwise_learner.trainer.assembler import Assembler
from turnwise_learner.trainer.replay import ReplayConfig, TurnReplay

T = TypeVar("T")

_FOLDER = tempfile.TemporaryDirectory(prefix="turnwise-fuzz-")  # removed when the process ends
FOLDER = Path(_FOLDER.name)
DOMAIN_FILE = Path(__file__).with_name("domain.yaml").read_bytes()
TREE = yaml.safe_load(DOMAIN_FILE)
DOMAIN = Domain.from_mapping(TREE)
POLICY = initial_policy(DOMAIN).to_bytes()
KEY = base64.b64encode(bytes(range(32))).decode()
KEY_FILE = {"active": "ab12cd34", "keys": {"ab12cd34": KEY, "00000000": KEY}, "retired": {"00000000": 1e9}}
CREDENTIALS = {
    "rate": 10,
    "credentials": [
        {
            "name": "web",
            "roles": ["frontend"],
            "sha256": "0" * 64,
            "rate": 5,
            "expires": "2030-01-01T00:00:00Z",
        },
        {"name": "ann", "roles": ["teacher", "operator"]},
    ],
}
NAMES = [
    *("name", "version", "state", "text", "encoder", "size", "slots", "features", "history", "actions", "id"),
    *("say", "rewards", "range", "neutral", "per_turn", "unrated", "correction", "wait", "dialogue", "type"),
    *("idle_timeout", "max_turns", "learning", "gamma", "n_step", "hidden", "min", "max", "active", "keys"),
    *("retired", "ab12cd34", "credentials", "roles", "sha256", "rate", "expires", "__metadata__", "dtype"),
    *("shape", "data_offsets", "format", "spec", "exploration", "teach_kind", "updates", "fingerprint"),
]

(FOLDER / "keys.json").write_text(json.dumps(KEY_FILE))
TOKENS = Tokens(KeyRing(FOLDER / "keys.json", "shop"), "shop")
CHECKS = Checks(DOMAIN, Encoder(DOMAIN), 65_536)


def token(wild: Wild) -> bytes:
    """A damaged token is refused by actors; clients read its head or refuse it."""
    state = wild.message(token_pb2.TokenState)
    sealed = TOKENS.seal("dialogue", state)
    assert TOKENS.open(sealed).state.SerializeToString() == state.SerializeToString()
    drawn = wild.damaged(sealed) if wild.chance(0.9) else wild.binary()
    assert _read(TokenError, lambda: TOKENS.open(drawn)) is None or drawn == sealed
    text = wild.text() if wild.chance(0.2) else base64.urlsafe_b64encode(drawn).decode()
    _read(TurnwiseError, lambda: token_from_str(text))
    return drawn


def policy_file(wild: Wild) -> bytes:
    """A damaged policy file is refused: its digest tells."""
    drawn = wild.damaged(POLICY) if wild.chance(0.9) else wild.binary()
    assert _read(PolicyFileError, lambda: Policy.from_bytes(drawn)) is None or drawn == POLICY
    _read(PolicyFileError, lambda: _mapped(drawn))
    return drawn


def policy_header(wild: Wild) -> bytes:
    """A policy file with a wild header and a digest that fits is a policy that acts, or is refused."""
    tensors = safetensors.numpy.load(POLICY)
    header = json.loads(POLICY[8 : 8 + int.from_bytes(POLICY[:8], "little")])
    about = json.loads(header["__metadata__"]["turnwise"])
    del about["digest"]
    if wild.chance(0.7):
        about = json.loads(as_json(wild.near_tree(about, NAMES)))
    if isinstance(about, dict):
        about["digest"] = _digest(about, tensors)
    header["__metadata__"]["turnwise"] = json.dumps(about, default=str)
    if wild.chance(0.5):
        header = wild.near_tree(header, NAMES)
    raw = as_json(header)
    drawn = struct.pack("<Q", len(raw)) + raw + POLICY[8 + int.from_bytes(POLICY[:8], "little") :]
    policy = _read(PolicyFileError, lambda: Policy.from_bytes(drawn))
    if policy is not None:
        x = np.zeros(policy.spec.inputs, np.float32)
        assert np.isfinite(policy.network.q_values(x)).all()
        policy.exploration.of("teach")
        assert Policy.from_bytes(policy.to_bytes()).version == policy.version
    mapped = _read(PolicyFileError, lambda: _mapped(drawn))
    assert policy is None or (mapped is not None and mapped.version == policy.version)
    return drawn


def _mapped(drawn: bytes) -> Policy:
    path = FOLDER / "mapped.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(drawn)
    with path.open("rb") as file:
        return Policy.mapped(file.fileno())


def spool(wild: Wild) -> bytes:
    """Of a damaged spool what comes before the damage is read."""
    whole = MAGIC + _encode([pack(wild.message(training_pb2.Fact)) for _ in range(wild.integer(1, 4))])
    drawn = wild.damaged(whole)
    read, good = _decode(drawn)
    assert good <= len(drawn)
    same = next((at for at, (a, b) in enumerate(zip(whole, drawn, strict=False)) if a != b), len(drawn))
    before, _ = _decode(whole[:same])
    # As bytes: a fact may hold NaN, which equals nothing.
    assert _encode(read).startswith(_encode(before))
    return drawn


def spool_record(wild: Wild) -> bytes:
    """A record that is no fact, under a checksum that fits, ends what is read."""
    body = wild.damaged(wild.message(training_pb2.Fact).SerializeToString())
    drawn = MAGIC + struct.pack("<II", len(body), zlib.crc32(body)) + body
    read, good = _decode(drawn)
    assert (len(read), good) in ((1, len(drawn)), (0, len(MAGIC)))
    return drawn


def domain_tree(wild: Wild) -> bytes:
    """Any tree is a domain, or names what is wrong."""
    tree = wild.tree(NAMES) if wild.chance(0.3) else wild.near_tree(TREE, NAMES)
    _domain_or_problems(lambda: Domain.from_mapping(tree))
    return repr(tree).encode("utf-8", "surrogatepass")


def domain_file(wild: Wild) -> bytes:
    """A damaged file is a domain, or names what is wrong."""
    kind = wild.random.choice(("yaml", "json"))
    whole = DOMAIN_FILE if kind == "yaml" else DOMAIN.to_json().encode()
    drawn = wild.damaged(whole)
    file = FOLDER / f"wild.{kind}"
    file.write_bytes(drawn)
    _domain_or_problems(lambda: Domain.load(file))
    return drawn


def key_file(wild: Wild) -> bytes:
    """A key file has keys, or is refused."""
    drawn = _file(wild, KEY_FILE)
    ring = _read(KeyFileError, lambda: KeyRing(FOLDER / "wild", "shop"))
    if ring is not None:
        tokens = Tokens(ring, "shop")
        state = token_pb2.TokenState(user="ann")
        opened = _read(TokenError, lambda: tokens.open(tokens.seal("d", state)))  # its key may be retired
        assert opened is None or opened.state == state
    return drawn


def credential_file(wild: Wild) -> bytes:
    """A credential file has principals, or is refused."""
    drawn = _file(wild, CREDENTIALS)
    for each in _read(CredentialFileError, lambda: read_credentials(FOLDER / "wild")) or ():
        assert each.name
        assert each.bucket.take() == 1
    return drawn


def request(wild: Wild) -> bytes:
    """A request is as wanted, or every wrong field is named; an observation that passes can be encoded."""
    seen = dialogue_pb2.Observation(text="hello", features=bytes(8))
    seen.slots.add(name="intent", category="greet")
    seen.slots.add(name="items", number=3)
    check: Callable[[Any], Any]
    whole: Any
    whole: Any
    check, whole = wild.random.choice(
        (
            (CHECKS.act, dialogue_pb2.ActRequest(observation=seen, request_id="r", allowed=["greet"])),
            (CHECKS.end, dialogue_pb2.EndRequest(outcome="idle", request_id="r", last_state=seen, reward=1)),
            (CHECKS.start, dialogue_pb2.StartDialogueRequest(dialogue_id="d", user="u")),
            (CHECKS.feedback, dialogue_pb2.FeedbackRequest(dialogue_id="d", feedback_id="f", reward=1)),
        )
    )
    drawn = wild.near(whole) if wild.chance(0.8) else wild.message(type(whole))
    raw, refused = None, None
    try:
        raw = check(drawn)
    except BadRequestError as error:
        refused = error
    if refused is not None:
        assert all(each.field and each.got and each.wanted for each in refused.violations)
        assert refused.violations
        assert len(refused.to_status().SerializeToString()) < 100_000
    elif raw is not None:
        assert np.isfinite(Encoder(DOMAIN).encode(raw)).all()
    return type(whole).__name__.encode() + drawn.SerializeToString()


def status(wild: Wild) -> bytes:
    """Any status becomes an error of the SDK."""
    drawn = wild.message(status_pb2.Status)
    for detail in drawn.details:
        name = wild.random.choice(("BadRequest", "ErrorInfo"))
        detail.type_url = f"type.googleapis.com/google.rpc.{name}"
        detail.value = wild.damaged(wild.message(getattr(status_pb2, name)).SerializeToString())
    try:
        assert str(error_from_status(drawn))
    except ValueError:
        assert drawn.code == 0
    return drawn.SerializeToString()


def journaled_facts(wild: Wild) -> bytes:
    """Facts that the learner takes can be learned from: the trainer would meet a bad one at every start."""
    facts = [wild.near(fact) for fact in _dialogue()]
    rows: list[Row] = []
    for fact in facts:
        if refusal(fact) is None:
            kind = KINDS[fact.WhichOneof("kind") or ""]
            rows.append(Row(len(rows) + 1, fact.dialogue_id, kind, fact.time_ms, fact, ""))

    def of_dialogues(names: Collection[str], through: int) -> list[Row]:
        return [row for row in rows if row.dialogue_id in names and row.seq <= through]

    assembler = Assembler(DOMAIN, of_dialogues, lambda _: None)
    replay = TurnReplay(Encoder(DOMAIN).size, 3, 0.9, 3, ReplayConfig(capacity_turns=64))
    for change in assembler.assemble(rows):
        replay.apply(change.records, change.lesson)
    if replay.learnable:
        _, columns = replay.sample(4)
        assert all(np.isfinite(values).all() for values in columns.values())
    again = TurnReplay(Encoder(DOMAIN).size, 3, 0.9, 3, ReplayConfig(capacity_turns=64))
    again.set_state(replay.get_state())
    return b"".join(fact.SerializeToString() for fact in facts)


def _dialogue() -> list[training_pb2.Fact]:
    """Facts of two dialogues, each kind of feedback among them."""
    facts = []
    for name in ("d", "e"):
        started = training_pb2.Started(user="ann", mode=dialogue_pb2.TEACH)
        facts.append(training_pb2.Fact(key=f"s:{name}", started=started))
        for index in range(3):
            decided = training_pb2.Decided(
                decision_id=f"{name}{index}",
                parent_id=f"{name}{index - 1}" if index else "",
                index=index,
                action="greet",
                mode=dialogue_pb2.TEACH,
                recorded=True,
                domain_fingerprint=DOMAIN.fingerprint,
            )
            decided.observation.text, decided.observation.features = "hello", bytes(8)
            facts.append(training_pb2.Fact(key=f"d:{name}{index}", decided=decided))
        kinds: list[Any] = [{"reward": -1.0}, {"correction": "ask_size"}, {"retraction": True}]
        given = training_pb2.Feedback(feedback_id="f", decision_id=f"{name}0", teacher="ann", revision=5)
        for number, kind in enumerate(kinds):
            feedback = training_pb2.Feedback(**kind)
            feedback.MergeFrom(given)
            facts.append(training_pb2.Fact(key=f"f:{name}{number}", feedback=feedback))
        how = training_pb2.Delivered(
            decision_id=f"{name}1", how=training_pb2.Delivered.OVERRIDDEN, action="greet", revision=6
        )
        facts.append(training_pb2.Fact(key=f"v:{name}", delivered=how))
        ended = training_pb2.Ended(decision_id=f"{name}2", outcome="idle", terminated=name == "e")
        ended.last_state.text, ended.last_state.features = "bye", bytes(8)
        facts.append(training_pb2.Fact(key=f"e:{name}:", ended=ended))
        for fact in facts:
            fact.dialogue_id = fact.dialogue_id or name
    return facts


PARSERS: dict[str, Callable[[Wild], bytes]] = {
    each.__name__: each
    for each in (
        *(token, policy_file, policy_header, spool, spool_record, domain_tree, domain_file),
        *(key_file, credential_file, request, status, journaled_facts),
    )
}


def _file(wild: Wild, tree: Any) -> bytes:
    """Writes a JSON file with something wrong in it."""
    drawn = as_json(wild.near_tree(tree, NAMES)) if wild.chance(0.6) else wild.damaged(as_json(tree))
    (FOLDER / "wild").write_bytes(drawn)
    return drawn


def _read(refused: type[Exception], read: Callable[[], T]) -> T | None:
    """What is read; None where it is refused with the documented error."""
    try:
        return read()
    except refused as error:
        message = str(error)
    assert message
    return None


def _domain_or_problems(read: Callable[[], Domain]) -> None:
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
