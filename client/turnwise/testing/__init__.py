"""A stand-in for an actor, for tests of applications that use Turnwise: a real server, scripted answers.

    from turnwise import Client
    from turnwise.testing import FakeActor

    def test_the_shop_says_what_the_bot_decides():
        with FakeActor(actions=["greet", "ask_size"], script=["greet", "ask_size"]) as actor:
            with Client(actor.address) as bot, bot.dialogue(user="ann") as talk:
                assert talk.act(text="hello").action == "greet"
                talk.act(text="a pizza, please").correct("greet")
            assert actor.received[1].text == "a pizza, please"
            assert actor.feedback[0].value == "greet"

It checks what it is given, as an actor does, and answers the documented errors. It can be told to be slow,
to refuse, to spool, to drain, to break its streams and to stop. Fakes with the same key, which is the
default, take each other's tokens, as the actors of one installation do. It learns nothing.
"""

import hashlib
import hmac
import math
import secrets
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, TypeAlias

import grpc

from turnwise._errors import TokenRejected
from turnwise._requests import MODES
from turnwise._tokens import token_from_str, token_to_str
from turnwise.testing._checks import Checks, Refusal, SlotKind
from turnwise.testing._wire import Servicer
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import dialogue_pb2_grpc, token_pb2

__all__ = ["End", "FakeActor", "GivenFeedback", "ReceivedAct"]

Script: TypeAlias = "Sequence[str] | Callable[[ReceivedAct], str] | None"


@dataclass(frozen=True)
class ReceivedAct:
    """One turn asked of the fake. A retry shows as another one with the same request_id.

    Attributes:
        index: Place of the turn in its dialogue, from 0.
        allowed: The actions possible, in the domain's order; all of them if the client named none.
    """

    dialogue_id: str
    user: str
    mode: str
    index: int
    text: str | None
    slots: Mapping[str, str | float | bool]
    features: tuple[float, ...]
    allowed: tuple[str, ...]
    request_id: str


@dataclass(frozen=True)
class GivenFeedback:
    """One piece of feedback, or news of a delivery.

    Attributes:
        kind: `reward`, `correction`, `retraction`, `comment_only`, `overridden` or `dropped`.
        value: The reward, the action of a correction or an override, else None.
        decision_id: Empty: the dialogue as a whole.
    """

    kind: str
    value: float | str | None
    dialogue_id: str
    decision_id: str
    comment: str
    teacher: str
    revision: int
    feedback_id: str


@dataclass(frozen=True)
class End:
    """One end of a dialogue."""

    dialogue_id: str
    outcome: str
    reward: float | None
    has_last_state: bool
    request_id: str


class FakeActor:
    """An actor on 127.0.0.1 with scripted actions; a context manager.

    Args:
        actions: Action ids, or a mapping from id to what to say for it.
        script: Ids in the order of the turns of each dialogue, beginning anew at the end; or a function of
            the `ReceivedAct`. None, or an action not allowed at that turn: the first one allowed.
        slots: The slots known, by name: a sequence of categories, `float` or `bool`. None: any.
        features: Floats in `features`.
        reward_range: The worst and the best reward.
        converse: False: answers UNIMPLEMENTED to Converse, as a proxy without streams would.
        key: Fakes of one key take each other's tokens.
        port: 0: any free one.
        interceptors: gRPC interceptors of the server, to see or refuse what arrives.

    Attributes:
        received: The turns asked, in order.
        feedback: Feedback given, in order.
        ends: Ends of dialogues, in order.
        started: Ids of dialogues begun, in order.
        address: `"127.0.0.1:port"`.
        policy_version: (generation, number) of its turns; assign to change it.
        learned_through: Said with each turn; assign to change it.
        recorded: Said with each turn; assign to change it.
        settled: `LEARNER` or `SPOOLED`, said in receipts; assign to change it.
        max_token_age_s: Tokens older than this are expired; assign to change it.
        idle_timeout_s: Dialogues continue as new ones after this; assign to change it.
    """

    def __init__(
        self,
        actions: Sequence[str] | Mapping[str, str] = ("greet", "bye"),
        script: Script = None,
        *,
        slots: Mapping[str, SlotKind] | None = None,
        features: int = 0,
        reward_range: tuple[float, float] = (-1.0, 1.0),
        converse: bool = True,
        key: bytes = b"turnwise.testing",
        port: int = 0,
        interceptors: "Sequence[grpc.ServerInterceptor[Any, Any]]" = (),
    ) -> None:
        phrasings = actions if isinstance(actions, Mapping) else {action: action for action in actions}
        if not phrasings:
            raise ValueError("actions: got none; wanted at least one action id")
        self.received: list[ReceivedAct] = []
        self.feedback: list[GivenFeedback] = []
        self.ends: list[End] = []
        self.started: list[str] = []
        self.policy_version = (1, 1)
        self.learned_through = 0
        self.recorded = True
        self.settled: Literal["LEARNER", "SPOOLED"] = "LEARNER"
        self.max_token_age_s = math.inf
        self.idle_timeout_s = math.inf
        self._domain = _describe(phrasings, slots, features, reward_range)
        self._checks = Checks(self._domain, any_slot=slots is None)
        self._script = script
        self._key = key
        self._ended: set[str] = set()
        self._cursor = count(1)
        self._refusal: Refusal | None = None
        self._refusals_left = 0.0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(64, thread_name_prefix="fake-actor")
        self._server = grpc.server(
            self._pool, interceptors=list(interceptors), options=[("grpc.so_reuseport", 0)]
        )
        self._wire = Servicer(self._answer, converse)
        dialogue_pb2_grpc.add_DialogueServicer_to_server(self._wire, self._server)
        bound = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{bound}"

    # ---- what tests tell it

    def delay(self, seconds: float) -> None:
        """Answers to what comes from now on are held back so long; `math.inf`: it hangs."""
        self._wire.delay_s = seconds

    def refuse(
        self, code: grpc.StatusCode, message: str = "refused by the test", reason: str = "", times: float = 1
    ) -> None:
        """The next requests, `times` of them, are answered with this status; `times=0`: no more."""
        self._refusal, self._refusals_left = Refusal(code, message, reason), times

    def drain(self) -> None:
        """Says Draining on each stream, answers what is in flight, and refuses new streams."""
        self._wire.draining = True
        self._wire.tell_streams(pb.ConverseReply(draining=pb.Draining()))

    def renew_streams(self) -> None:
        """Says Draining on each stream, as an actor does every 10 minutes, and takes new ones."""
        self._wire.tell_streams(pb.ConverseReply(draining=pb.Draining()))

    def break_streams(self) -> None:
        """Breaks each stream; what is in flight on them is not answered."""
        self._wire.tell_streams(Refusal(grpc.StatusCode.UNAVAILABLE, "broken by the test"))

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return self._wire.streams

    def stop(self) -> None:
        """Stops at once, as a killed process does; requests in flight are not answered."""
        self._wire.stopping.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def __enter__(self) -> "FakeActor":
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # ---- how it answers

    def _answer(self, request: Any) -> Any:
        """The reply to a request of any kind.

        Raises:
            Refusal: It is answered with a status.
        """
        with self._lock:
            if self._refusal is not None and self._refusals_left > 0:
                self._refusals_left -= 1
                raise self._refusal
            if isinstance(request, pb.StartDialogueRequest):
                return self._start(request)
            if isinstance(request, pb.ActRequest):
                return self._act(request)
            if isinstance(request, pb.FeedbackRequest):
                return self._take_feedback(request)
            if isinstance(request, pb.EndRequest):
                return self._end(request)
            return self._domain

    def _start(self, request: pb.StartDialogueRequest) -> pb.StartDialogueReply:
        self._checks.start(request)
        self.started.append(request.dialogue_id)
        state = token_pb2.TokenState(mode=request.mode or pb.TEACH, user=request.user)
        token = self._seal(request.dialogue_id, state)
        return pb.StartDialogueReply(dialogue_id=request.dialogue_id, token=token, domain=self._domain)

    def _act(self, request: pb.ActRequest) -> pb.Turn:
        dialogue_id, state = self._open(request.token)
        age_s = time.time() - state.issued_ms / 1000
        if age_s > self.max_token_age_s:
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "the token has expired", "TOKEN_EXPIRED")
        self._refuse_ended(dialogue_id)
        self._checks.act(request)
        if age_s > self.idle_timeout_s:
            dialogue_id, state.next_index, state.decision_id = secrets.token_hex(16), 0, ""
        act = self._read(request, dialogue_id, state)
        self.received.append(act)
        return self._turn(request, act, state)

    def _read(self, request: pb.ActRequest, dialogue_id: str, state: token_pb2.TokenState) -> ReceivedAct:
        seen = request.observation
        named = set(request.allowed)
        return ReceivedAct(
            dialogue_id=dialogue_id,
            user=state.user,
            mode=next(name for name, mode in MODES.items() if mode == state.mode),
            index=state.next_index,
            text=seen.text if seen.HasField("text") else None,
            slots={slot.name: getattr(slot, slot.WhichOneof("value") or "") for slot in seen.slots},
            features=struct.unpack(f"<{len(seen.features) // 4}f", seen.features),
            allowed=tuple(each for each in self._checks.actions if not named or each in named),
            request_id=request.request_id,
        )

    def _turn(self, request: pb.ActRequest, act: ReceivedAct, state: token_pb2.TokenState) -> pb.Turn:
        action = self._scripted(act)
        generation, number = self.policy_version
        digest = hashlib.blake2b(digest_size=16)
        observed = request.observation.SerializeToString(deterministic=True)
        for part in (state.decision_id, observed, act.allowed, action, self.policy_version):
            digest.update(repr(part).encode())
        state.decision_id, state.next_index = digest.hexdigest(), act.index + 1
        values = [float(a == action) if a in act.allowed else math.nan for a in self._checks.actions]
        says = next(each.say for each in self._domain.actions if each.id == action)
        return pb.Turn(
            dialogue_id=act.dialogue_id,
            index=act.index,
            decision_id=state.decision_id,
            action=action,
            say=says[0],
            probability=1.0,
            q_values=struct.pack(f"<{len(values)}f", *values),
            policy_version=pb.PolicyVersion(generation=generation, number=number),
            learned_through=self.learned_through,
            recorded=self.recorded,
            token=self._seal(act.dialogue_id, state),
            domain_fingerprint=self._domain.fingerprint,
        )

    def _scripted(self, act: ReceivedAct) -> str:
        if self._script is None:
            return act.allowed[0]
        if callable(self._script):
            try:
                action = self._script(act)
            except Exception as error:
                raise Refusal(grpc.StatusCode.INTERNAL, f"script raised {error!r}") from error
        else:
            action = self._script[act.index % len(self._script)]
        if action not in self._checks.actions:
            known = ", ".join(self._checks.actions)
            raise Refusal(grpc.StatusCode.INTERNAL, f"script: got {action!r}; wanted one of {known}")
        return action if action in act.allowed else act.allowed[0]

    def _take_feedback(self, request: pb.FeedbackRequest) -> pb.Receipt:
        if request.token:
            self._open(request.token)
        self._checks.feedback(request)
        kind = request.WhichOneof("kind") or ""
        value = getattr(request, kind)
        if kind == "overridden":
            value = value.action
        elif kind not in ("reward", "correction"):
            value = None
        given = GivenFeedback(
            kind=kind,
            value=value,
            dialogue_id=request.dialogue_id,
            decision_id=request.decision_id,
            comment=request.comment,
            teacher=request.teacher,
            revision=request.revision,
            feedback_id=request.feedback_id,
        )
        self.feedback.append(given)
        return self._receipt()

    def _end(self, request: pb.EndRequest) -> pb.Receipt:
        dialogue_id, _ = self._open(request.token)
        self._checks.end(request)
        reward = request.reward if request.HasField("reward") else None
        has_last_state = request.HasField("last_state")
        self.ends.append(End(dialogue_id, request.outcome, reward, has_last_state, request.request_id))
        self._ended.add(dialogue_id)
        return self._receipt()

    def _receipt(self) -> pb.Receipt:
        if self.settled == "SPOOLED":
            return pb.Receipt(settled=pb.Receipt.SPOOLED)
        return pb.Receipt(settled=pb.Receipt.LEARNER, journal_cursor=next(self._cursor))

    def _refuse_ended(self, dialogue_id: str) -> None:
        if dialogue_id in self._ended:
            message = f"dialogue {dialogue_id} has ended"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, message, "DIALOGUE_ENDED")

    def _seal(self, dialogue_id: str, state: token_pb2.TokenState) -> bytes:
        state.issued_ms = time.time_ns() // 1_000_000
        name = dialogue_id.encode()
        head = b"\x01" + self._key_id() + secrets.token_bytes(12) + bytes([len(name)]) + name
        body = head + state.SerializeToString()
        return body + self._tag(body)

    def _open(self, token: bytes) -> tuple[str, token_pb2.TokenState]:
        try:
            _, dialogue_id = token_from_str(token_to_str(token))
        except TokenRejected as error:
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, str(error), "TOKEN_INVALID") from None
        if token[1:5] != self._key_id():
            message = "the token was sealed by another installation"
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, message, "TOKEN_FOREIGN")
        if not hmac.compare_digest(token[-16:], self._tag(token[:-16])):
            message = "the token was altered"
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, message, "TOKEN_INVALID")
        return dialogue_id, token_pb2.TokenState.FromString(token[18 + token[17] : -16])

    def _key_id(self) -> bytes:
        return hashlib.blake2b(self._key, digest_size=4).digest()

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:16]


def _describe(
    phrasings: Mapping[str, str],
    slots: Mapping[str, SlotKind] | None,
    features: int,
    reward_range: tuple[float, float],
) -> pb.DomainDescription:
    described = pb.DomainDescription(
        name="fake",
        version="1",
        text=True,
        features=features,
        reward_min=reward_range[0],
        reward_max=reward_range[1],
        idle_timeout_s=1800,
        max_turns=60,
    )
    for action, say in phrasings.items():
        described.actions.add(id=action, say=[say])
    for name, kind in (slots or {}).items():
        if kind is bool:
            described.slots.add(name=name, type="bool")
        elif kind is float:
            described.slots.add(name=name, type="number", min=-1e9, max=1e9)
        elif isinstance(kind, Sequence):
            described.slots.add(name=name, type="category", categories=kind)
        else:
            raise ValueError(f"slots[{name}]: got {kind!r}; wanted a sequence of categories, float or bool")
    digest = hashlib.blake2b(described.SerializeToString(deterministic=True), digest_size=8)
    described.fingerprint = digest.hexdigest()
    return described
