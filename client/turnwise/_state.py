"""What a dialogue and its turns know and do, without I/O: shared by both clients.

Each operation is a *flow*: a generator that yields requests, is sent the replies, and returns the result.
The clients run flows, one blocking, one awaiting; all that a dialogue decides is decided here.
"""

import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar

from turnwise._errors import (
    DialogueEnded,
    InvalidRequest,
    TurnwiseError,
    UnexpectedReply,
    Violation,
    invalid,
)
from turnwise._replies import Domain, PolicyVersion, Receipt, Reply, read_domain, read_q_values, read_receipt
from turnwise._requests import (
    Request,
    Revisions,
    SlotValue,
    act_request,
    dropped_request,
    end_request,
    feedback_request,
    new_id,
    observation,
    overridden_request,
    start_request,
)
from turnwise._tokens import token_from_str, token_to_str
from turnwise.v1 import dialogue_pb2 as pb

T = TypeVar("T")
M = TypeVar("M", pb.StartDialogueReply, pb.Turn, pb.Receipt, pb.DomainDescription)
Flow: TypeAlias = Generator[Request, Reply, T]

_log = logging.getLogger("turnwise")


class Domains:
    """The domains this client has met, by fingerprint; a fleet being updated serves two at a time."""

    def __init__(self) -> None:
        self._known: dict[str, Domain] = {}

    def add(self, described: pb.DomainDescription) -> Domain:
        """Remembers a domain."""
        domain = read_domain(described)
        self._known[domain.fingerprint] = domain
        return domain

    def get(self, fingerprint: str) -> Domain | None:
        """The domain of a fingerprint, once met."""
        return self._known.get(fingerprint)


class TurnState:
    """One turn: what the bot decided, and what it knew of the alternatives.

    Attributes:
        action: Id of the action decided on.
        say: What to say for it.
        index: Place in its dialogue, from 0.
        probability: With which the policy chose the action, (0, 1].
        policy_version: The policy that decided.
        learned_through: Journal position whose lessons that policy has learned.
        decision_id: 32 hex digits that name this decision; keep them to give feedback later.
        dialogue_id: The dialogue this turn belongs to.
        recorded: False: the actor's disk spool is full; nothing is learned from this turn.
    """

    def __init__(self, reply: pb.Turn, domain: Domain | None) -> None:
        self.action: str = reply.action
        self.say: str = reply.say
        self.index: int = reply.index
        self.probability: float = reply.probability
        self.policy_version = PolicyVersion(reply.policy_version.generation, reply.policy_version.number)
        self.learned_through: int = reply.learned_through
        self.decision_id: str = reply.decision_id
        self.dialogue_id: str = reply.dialogue_id
        self.recorded: bool = reply.recorded
        self._token: bytes = reply.token
        self._q_values: bytes = reply.q_values
        self._fingerprint: str = reply.domain_fingerprint
        self._domain = domain

    @property
    def q_values(self) -> dict[str, float]:
        """The value of each allowed action, by id.

        Raises:
            UnexpectedReply: The domain that names the values could not be had from the actors.
        """
        if self._domain is None:
            raise UnexpectedReply(f"no actor describes domain {self._fingerprint}, which names the q_values")
        return read_q_values(self._q_values, self._domain.actions)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.index}: {self.action!r}, policy {self.policy_version}>"


TurnT = TypeVar("TurnT", bound=TurnState)


class DialogueState:
    """Where a dialogue stands. A fork begins as a copy of it."""

    def __init__(self, revisions: Revisions, domains: Domains) -> None:
        self.dialogue_id = ""
        self.token = b""
        self.start: pb.StartDialogueRequest | None = None  # not yet begun
        self.begun_here = False
        self.ended = False
        self._unanswered_end: pb.EndRequest | None = None
        self._revisions = revisions
        self._domains = domains

    @classmethod
    def new(
        cls, revisions: Revisions, domains: Domains, dialogue_id: str | None, user: str, mode: str
    ) -> "DialogueState":
        """A dialogue still to be begun."""
        state = cls(revisions, domains)
        state.dialogue_id = new_id() if dialogue_id is None else dialogue_id
        state.start = start_request(state.dialogue_id, user, mode)
        return state

    @classmethod
    def resumed(cls, revisions: Revisions, domains: Domains, token: str) -> "DialogueState":
        """A dialogue that goes on from a token."""
        state = cls(revisions, domains)
        state.token, state.dialogue_id = token_from_str(token)
        return state

    def forked(self, turns: Sequence[TurnT], index: int) -> tuple["DialogueState", list[TurnT]]:
        """The dialogue right after one of its turns, and the turns up to there."""
        for place in range(len(turns) - 1, -1, -1):
            turn = turns[place]
            if turn.index == index:
                state = DialogueState(self._revisions, self._domains)
                state.dialogue_id, state.token = turn.dialogue_id, turn._token
                return state, list(turns[: place + 1])
        known = ", ".join(str(turn.index) for turn in turns) or "none yet"
        raise invalid("index", index, f"the index of a turn made here: {known}")

    def token_text(self) -> str:
        """The token as callers keep it."""
        if not self.token:
            wanted = "a dialogue that has begun: enter its block, or let it act, first"
            raise InvalidRequest("no token yet", [Violation("token", f"got none; wanted {wanted}")])
        return token_to_str(self.token)

    def begin(self) -> Flow[None]:
        """Begins the dialogue unless it has begun."""
        if self.start is None:
            return
        reply = _expect(pb.StartDialogueReply, (yield self.start))
        self._domains.add(reply.domain)
        self.dialogue_id, self.token = reply.dialogue_id, reply.token
        self.start, self.begun_here = None, True

    def act(
        self,
        text: str | None,
        slots: Mapping[str, SlotValue] | None,
        features: Iterable[float] | None,
        allowed: Sequence[str] | None,
    ) -> Flow[tuple[pb.Turn, Domain | None]]:
        """One turn: the reply, and the domain that names its values."""
        self._check_open("act")
        seen = observation(text, slots, features)
        act_request(b"", seen, allowed)  # wrong arguments begin no dialogue
        yield from self.begin()
        turn = _expect(pb.Turn, (yield act_request(self.token, seen, allowed)))
        self.token = turn.token
        if turn.dialogue_id != self.dialogue_id:
            _log.info("dialogue %s was idle and continues as %s", self.dialogue_id, turn.dialogue_id)
            self.dialogue_id, self.begun_here = turn.dialogue_id, True
        return turn, (yield from self._domain_of(turn))

    def reward(self, turn: TurnState, value: float, comment: str) -> Flow[Receipt]:
        """Feedback: a reward."""
        return self._feedback(turn, reward=value, comment=comment)

    def correct(self, turn: TurnState, action: str, comment: str) -> Flow[Receipt]:
        """Feedback: a correction."""
        return self._feedback(turn, correction=action, comment=comment)

    def retract(self, turn: TurnState) -> Flow[Receipt]:
        """Withdraws the feedback on a turn."""
        return self._feedback(turn, retract=True)

    def overridden(self, turn: TurnState, action: str, probability: float | None) -> Flow[Receipt]:
        """Delivery: another action went out."""
        revision, token = self._revisions.next(), self._token_for(turn)
        return give(
            overridden_request(revision, turn.dialogue_id, turn.decision_id, token, action, probability)
        )

    def dropped(self, turn: TurnState) -> Flow[Receipt]:
        """Delivery: nothing went out."""
        revision, token = self._revisions.next(), self._token_for(turn)
        return give(dropped_request(revision, turn.dialogue_id, turn.decision_id, token))

    def end(
        self,
        outcome: str,
        reward: float | None,
        text: str | None,
        slots: Mapping[str, SlotValue] | None,
        features: Iterable[float] | None,
    ) -> Flow[Receipt]:
        """Ends the dialogue."""
        self._check_open("end")
        has_last = not (text is None and slots is None and features is None)
        last_state = observation(text, slots, features) if has_last else None
        request = end_request(self._revisions.next(), b"", outcome, reward, last_state)
        yield from self.begin()
        request.token = self.token
        request = self._same_end(request)
        receipt = yield from give(request)
        self.ended = True
        return receipt

    def leave(self) -> Flow[None]:
        """The caller's block is over: a dialogue begun here and not ended is truncated.

        That it could not be is logged, not raised: it must not hide the caller's own exception, and the
        learner truncates an idle dialogue by itself.
        """
        if self.ended or not self.begun_here:
            return
        try:
            yield from self.end("abandoned", None, None, None, None)
        except TurnwiseError as error:
            _log.warning("dialogue %s could not be truncated: %s", self.dialogue_id, error)

    def _feedback(
        self,
        turn: TurnState,
        reward: float | None = None,
        correction: str | None = None,
        retract: bool = False,
        comment: str = "",
    ) -> Flow[Receipt]:
        return give(
            feedback_request(
                self._revisions.next(),
                turn.dialogue_id,
                turn.decision_id,
                token=self._token_for(turn),
                reward=reward,
                correction=correction,
                retract=retract,
                comment=comment,
            )
        )

    def _token_for(self, turn: TurnState) -> bytes:
        """The newest token of the turn's own dialogue: unsettled facts travel in it."""
        return self.token if turn.dialogue_id == self.dialogue_id else turn._token

    def _same_end(self, request: pb.EndRequest) -> pb.EndRequest:
        """An `end` repeated after an error keeps its request_id, so that its reward counts once."""
        last = self._unanswered_end
        if last is not None:
            request.request_id, mine = last.request_id, request.request_id
            request.revision, revision = last.revision, request.revision
            if request != last:
                request.request_id, request.revision = mine, revision
        self._unanswered_end = request
        return request

    def _check_open(self, verb: str) -> None:
        if self.ended:
            raise DialogueEnded(f"cannot {verb}: dialogue {self.dialogue_id} has ended; begin another")

    def _domain_of(self, turn: pb.Turn) -> Flow[Domain | None]:
        known = self._domains.get(turn.domain_fingerprint)
        if known is None:
            try:
                yield from describe(self._domains)
            except TurnwiseError as error:  # the turn itself is good
                _log.warning("could not get domain %s: %s", turn.domain_fingerprint, error)
        return self._domains.get(turn.domain_fingerprint)


def leave_timeout_s(kind: type[BaseException] | None) -> float | None:
    """Seconds that leaving a block may take; None: as any call. Who presses Ctrl-C will not wait."""
    return 1.0 if kind is not None and not issubclass(kind, Exception) else None


def describe(domains: Domains) -> Flow[Domain]:
    """Asks for the domain."""
    return domains.add(_expect(pb.DomainDescription, (yield pb.DescribeDomainRequest())))


def give(request: pb.FeedbackRequest | pb.EndRequest) -> Flow[Receipt]:
    """Sends one fact and reads its receipt."""
    return read_receipt(_expect(pb.Receipt, (yield request)))


def _expect(kind: type[M], reply: Reply) -> M:
    if not isinstance(reply, kind):
        raise UnexpectedReply(f"the actor answered {type(reply).__name__}; wanted {kind.__name__}")
    return reply
