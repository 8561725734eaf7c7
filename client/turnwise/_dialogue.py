"""Dialogues and turns of both clients: thin, what they decide is in `_state`."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from turnwise._replies import Receipt
from turnwise._requests import SlotValue
from turnwise._state import DialogueState, Flow, TurnState, leave_timeout_s

Runner = Callable[[Flow[Any], float | None], Any]
AsyncRunner = Callable[[Flow[Any], float | None], Coroutine[Any, Any, Any]]


class Turn(TurnState):
    """One turn of a dialogue: what the bot decided, and the ways to say how good that was.

    Feedback may be given at any time, changed by giving it again, and withdrawn. Each call answers when
    the fact is durable, with a `Receipt`.
    """

    _run: Runner
    _state: DialogueState

    def reward(self, value: float, comment: str = "", *, timeout: float | None = None) -> Receipt:
        """Says how good this turn was.

        Args:
            value: In the units of the domain's `rewards.range`.
            comment: For people; at most 4096 bytes.
            timeout: Seconds; None: the client's.

        Raises:
            InvalidRequest: The value is no finite number, or out of range.
            TurnwiseError: It could not be recorded in time; may be repeated.
        """
        receipt: Receipt = self._run(self._state.reward(self, value, comment), timeout)
        return receipt

    def correct(self, action: str, comment: str = "", *, timeout: float | None = None) -> Receipt:
        """Says which action would have been right."""
        receipt: Receipt = self._run(self._state.correct(self, action, comment), timeout)
        return receipt

    def retract(self, *, timeout: float | None = None) -> Receipt:
        """Withdraws this teacher's reward and correction on this turn."""
        receipt: Receipt = self._run(self._state.retract(self), timeout)
        return receipt

    def overridden(
        self, action: str, probability: float | None = None, *, timeout: float | None = None
    ) -> Receipt:
        """Says that another action went out instead; that one is then learned from.

        Args:
            action: Id of the action that went out.
            probability: With which the application chose it, (0, 1]; None: unknown.
            timeout: Seconds; None: the client's.
        """
        receipt: Receipt = self._run(self._state.overridden(self, action, probability), timeout)
        return receipt

    def dropped(self, *, timeout: float | None = None) -> Receipt:
        """Says that nothing went out; nothing is learned from this turn."""
        receipt: Receipt = self._run(self._state.dropped(self), timeout)
        return receipt


class Dialogue:
    """One conversation. Made by `Client.dialogue`, `Client.resume` or `Dialogue.fork`.

    As a context manager it begins at once; without, at its first `act`. Leaving the block without `end`
    truncates a dialogue that was begun here, with outcome `abandoned`; a resumed one or a fork is left
    as it is, to be resumed again. Its calls are carried out one after the other, whatever thread they
    come from.
    """

    def __init__(self, run: Runner, state: DialogueState, turns: list[Turn]) -> None:
        self._run = run
        self._state = state
        self._turns = turns
        self._one_at_a_time = threading.Lock()

    @property
    def id(self) -> str:
        """The dialogue's id. Changes where a long idle dialogue continues as a new, linked one."""
        return self._state.dialogue_id

    @property
    def token(self) -> str:
        """All that an actor has to know to go on from here; `Client.resume` takes it, even next month.

        Raises:
            InvalidRequest: The dialogue has not begun.
        """
        return self._state.token_text()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns made through this object, oldest first; of a fork, those before it too."""
        return tuple(self._turns)

    @property
    def ended(self) -> bool:
        """Whether `end` has succeeded here."""
        return self._state.ended

    def act(
        self,
        text: str | None = None,
        *,
        slots: Mapping[str, SlotValue] | None = None,
        features: Iterable[float] | None = None,
        allowed: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> Turn:
        """Shows the bot the state of the conversation and gets its action.

        Args:
            text: The person's words; None: none were said.
            slots: What the application knows, by the domain's slot names; None values count as absent.
            features: The domain's raw floats: any flat sequence, numpy arrays included.
            allowed: Ids of the actions possible now; None: all.
            timeout: Seconds; None: the client's.

        Raises:
            InvalidRequest: An argument is wrong; `violations` names each.
            DialogueEnded: The dialogue has ended.
            ActorUnavailable: No actor could be had in time; may be repeated.
        """
        with self._one_at_a_time:
            reply, domain = self._run(self._state.act(text, slots, features, allowed), timeout)
            turn = Turn(reply, domain)
            turn._run, turn._state = self._run, self._state
            self._turns.append(turn)
        return turn

    def end(
        self,
        outcome: str = "success",
        reward: float | None = None,
        *,
        text: str | None = None,
        slots: Mapping[str, SlotValue] | None = None,
        features: Iterable[float] | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Ends the dialogue.

        Args:
            outcome: `success`, `failure` and `goodbye` terminate: nothing more could have been gained.
                `idle`, `handoff`, `limit` and `abandoned` truncate: it was cut off.
            reward: On the dialogue as a whole, in the units of the domain's `rewards.range`.
            text: With `slots` and `features`: the state after the last turn, of use where it was cut off.
            slots: See `act`.
            features: See `act`.
            timeout: Seconds; None: the client's.

        Raises:
            InvalidRequest: An argument is wrong; `violations` names each.
            DialogueEnded: It has ended before.
        """
        with self._one_at_a_time:
            receipt: Receipt = self._run(self._state.end(outcome, reward, text, slots, features), timeout)
        return receipt

    def fork(self, index: int) -> "Dialogue":
        """A dialogue that goes on right after the turn of this index, as if the later ones had not been.

        This one stays as it is. The first act of the fork makes it a linked dialogue at the learner.

        Raises:
            InvalidRequest: No turn of this index was made here.
        """
        state, turns = self._state.forked(self._turns, index)
        return Dialogue(self._run, state, turns)

    def __enter__(self) -> "Dialogue":
        with self._one_at_a_time:
            self._run(self._state.begin(), None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._one_at_a_time:
            self._run(self._state.leave(), leave_timeout_s(kind))

    def __repr__(self) -> str:
        return f"<Dialogue {self.id!r}, {len(self._turns)} turns{', ended' if self.ended else ''}>"


class AsyncTurn(TurnState):
    """As `Turn`, awaited."""

    _run: AsyncRunner
    _state: DialogueState

    async def reward(self, value: float, comment: str = "", *, timeout: float | None = None) -> Receipt:
        """As `Turn.reward`."""
        receipt: Receipt = await self._run(self._state.reward(self, value, comment), timeout)
        return receipt

    async def correct(self, action: str, comment: str = "", *, timeout: float | None = None) -> Receipt:
        """As `Turn.correct`."""
        receipt: Receipt = await self._run(self._state.correct(self, action, comment), timeout)
        return receipt

    async def retract(self, *, timeout: float | None = None) -> Receipt:
        """As `Turn.retract`."""
        receipt: Receipt = await self._run(self._state.retract(self), timeout)
        return receipt

    async def overridden(
        self, action: str, probability: float | None = None, *, timeout: float | None = None
    ) -> Receipt:
        """As `Turn.overridden`."""
        receipt: Receipt = await self._run(self._state.overridden(self, action, probability), timeout)
        return receipt

    async def dropped(self, *, timeout: float | None = None) -> Receipt:
        """As `Turn.dropped`."""
        receipt: Receipt = await self._run(self._state.dropped(self), timeout)
        return receipt


class AsyncDialogue:
    """As `Dialogue`, awaited, and an async context manager."""

    def __init__(self, run: AsyncRunner, state: DialogueState, turns: list[AsyncTurn]) -> None:
        self._run = run
        self._state = state
        self._turns = turns
        self._one_at_a_time = asyncio.Lock()

    @property
    def id(self) -> str:
        """As `Dialogue.id`."""
        return self._state.dialogue_id

    @property
    def token(self) -> str:
        """As `Dialogue.token`."""
        return self._state.token_text()

    @property
    def turns(self) -> tuple[AsyncTurn, ...]:
        """As `Dialogue.turns`."""
        return tuple(self._turns)

    @property
    def ended(self) -> bool:
        """As `Dialogue.ended`."""
        return self._state.ended

    async def act(
        self,
        text: str | None = None,
        *,
        slots: Mapping[str, SlotValue] | None = None,
        features: Iterable[float] | None = None,
        allowed: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> AsyncTurn:
        """As `Dialogue.act`."""
        async with self._one_at_a_time:
            reply, domain = await self._run(self._state.act(text, slots, features, allowed), timeout)
            turn = AsyncTurn(reply, domain)
            turn._run, turn._state = self._run, self._state
            self._turns.append(turn)
        return turn

    async def end(
        self,
        outcome: str = "success",
        reward: float | None = None,
        *,
        text: str | None = None,
        slots: Mapping[str, SlotValue] | None = None,
        features: Iterable[float] | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """As `Dialogue.end`."""
        async with self._one_at_a_time:
            flow = self._state.end(outcome, reward, text, slots, features)
            receipt: Receipt = await self._run(flow, timeout)
        return receipt

    def fork(self, index: int) -> "AsyncDialogue":
        """As `Dialogue.fork`."""
        state, turns = self._state.forked(self._turns, index)
        return AsyncDialogue(self._run, state, turns)

    async def __aenter__(self) -> "AsyncDialogue":
        async with self._one_at_a_time:
            await self._run(self._state.begin(), None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._one_at_a_time:
            await self._run(self._state.leave(), leave_timeout_s(kind))

    def __repr__(self) -> str:
        return f"<AsyncDialogue {self.id!r}, {len(self._turns)} turns{', ended' if self.ended else ''}>"
