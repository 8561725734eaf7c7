"""One person's talk with the bot: what a typed line does. Knows nothing of keyboards."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import turnwise

CONNECT_TIMEOUT_S = 3.0
"""Wait for the first answer of an actor."""
LEARN_WAIT_S = 1.0
"""How long the person is kept curious about a lesson."""
_ASK_AGAIN_S = 0.03
_NEXT_BEST = 3
TERMINATING = ("success", "failure", "goodbye")
OUTCOMES = (*TERMINATING, "idle", "handoff", "limit", "abandoned")

COMMANDS = {
    "fix": ("ACTION", "what would have been right: teaches the last turn"),
    "undo": ("", "take the last feedback back"),
    "end": ("OUTCOME [REWARD]", "end the dialogue; the next line begins another"),
    "why": ("", "all values behind the last answer"),
    "slot": ("NAME=VALUE", "set a slot for the next turns; NAME= clears it"),
    "allowed": ("ACTION ... | all", "the actions possible at the next turns"),
    "say": ("WORDS", "say words that look like a reward or a command"),
    "token": ("", "the dialogue's token: `turnwise chat --resume TOKEN` goes on from it"),
    "help": ("", "this list"),
    "quit": ("", "leave; so does Ctrl-D"),
}
"""Name to arguments and meaning."""


class Quit(Exception):
    """The person wants to leave."""


class _Mistake(Exception):
    """The line cannot be carried out as typed; the message says what is wanted."""


@dataclass
class _Said:
    """What a turn was about."""

    turn: turnwise.AsyncTurn
    seen: dict[str, Any]


@dataclass
class Conversation:
    """From one `open()` to `close()`, over any number of dialogues, one at a time."""

    bot: turnwise.AsyncClient
    console: Console
    user: str
    mode: str
    slots: dict[str, str | float | bool] = field(default_factory=dict)
    allowed: list[str] | None = None
    failures: int = 0
    """Lines that could not be carried out."""
    domain: turnwise.Domain = field(init=False)
    _talk: turnwise.AsyncDialogue | None = None
    _last: _Said | None = None
    _taught: list[turnwise.AsyncTurn] = field(default_factory=list)
    _leave: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _lessons: set["asyncio.Task[None]"] = field(default_factory=set)

    async def open(self, token: str | None = None) -> None:
        """Asks the bot what it can do; goes on with an earlier dialogue if given its token.

        Raises:
            turnwise.TurnwiseError: No actor answers, or the token is refused.
        """
        self.domain = await self.bot.domain(timeout=CONNECT_TIMEOUT_S)
        if token is not None:
            await self._enter(self.bot.resume(token))
        going_on = f"going on with {self._talk.id}" if self._talk is not None else f"mode {self.mode}"
        about = f"{self.domain.name}: {len(self.domain.actions)} actions, {going_on}"
        who = f", as {self.user}" if self.user else ""
        self._note(f"{about}{who}")
        self._note("+ or - rates an answer, /fix teaches a better one, /help tells more")
        if self.domain.features:
            self._note(f"the bot also sees {self.domain.features} numbers of the frontend: all 0 here")

    async def close(self) -> None:
        """Leaves: a dialogue begun here is ended as truncated. Waits for the news of lessons."""
        if self._lessons:
            await asyncio.wait(self._lessons)
        try:
            await self._leave_dialogue()
        except turnwise.TurnwiseError as error:
            self._failed(error)

    async def handle(self, line: str) -> None:
        """Does what a line says. Whatever goes wrong is shown, in one line.

        Raises:
            Quit: The person wants to leave.
        """
        words = line.strip()
        try:
            if not words:
                return
            if (reward := self._as_reward(words)) is not None:
                await self._teach(f"reward {reward:+g}", lambda turn: turn.reward(reward))
            elif words.startswith("/"):
                name, _, rest = words[1:].partition(" ")
                await self._command(name, rest.strip())
            else:
                await self._say(words)
        except _Mistake as mistake:
            self.failures += 1
            self._show(f"[red]![/] {escape(str(mistake))}")
        except turnwise.TurnwiseError as error:
            self._failed(error)

    async def lessons_shown(self) -> None:
        """Returns when what can be told of the lessons so far has been told."""
        while self._lessons:
            await asyncio.wait(self._lessons)

    def ranked_actions(self) -> list[tuple[str, str, float | None]]:
        """(id, what it says, value) of every action, by the values of the last turn, best first."""
        values = dict(self._last.turn.q_values) if self._last is not None else {}
        order = list(self.domain.actions)
        order.sort(key=lambda action: -values.get(action, float("-inf")))
        return [(action, _phrase(self.domain, action), values.get(action)) for action in order]

    # ---- turns ------------------------------------------------------------------------------------

    async def _say(self, words: str) -> None:
        if self._talk is None:
            await self._enter(self.bot.dialogue(user=self.user, mode=self.mode))
        assert self._talk is not None
        seen: dict[str, Any] = {"text": words, "slots": dict(self.slots), "allowed": self.allowed}
        if self.domain.features:
            seen["features"] = [0.0] * self.domain.features
        try:
            turn = await self._talk.act(**seen)
        except (turnwise.DialogueEnded, turnwise.TokenError):
            self._forget()
            raise
        self._last = _Said(turn, seen)
        self._show_turn(turn)

    async def _enter(self, dialogue: turnwise.AsyncDialogue) -> None:
        self._talk = await self._leave.enter_async_context(dialogue)

    async def _leave_dialogue(self) -> None:
        leave = self._leave
        self._forget()
        await leave.aclose()

    def _forget(self) -> None:
        self._talk, self._last, self._leave = None, None, contextlib.AsyncExitStack()

    # ---- lessons ----------------------------------------------------------------------------------

    def _as_reward(self, words: str) -> float | None:
        if words in ("+", "-"):
            return self.domain.reward_max if words == "+" else self.domain.reward_min
        try:
            return float(words) if words[0] in "+-.0123456789" else None
        except ValueError:
            return None

    async def _teach(
        self, what: str, give: Callable[[turnwise.AsyncTurn], Awaitable[turnwise.Receipt]]
    ) -> None:
        if self._last is None:
            raise _Mistake("there is no answer to rate yet; /say WORDS says words that look like a reward")
        said = self._last
        receipt = await give(said.turn)
        if said.turn not in self._taught:
            self._taught.append(said.turn)
        self._settled(what, said, receipt)

    def _settled(self, what: str, said: _Said, receipt: turnwise.Receipt) -> None:
        about = f"{what} for {said.turn.action} at turn {said.turn.index}"
        if receipt.settled != "LEARNER":
            self._note(f"{about}: kept on the actor's disk, the learner is away and will learn it later")
        elif self.mode == "evaluate":
            self._note(f"{about}: journaled; nothing is learned in mode evaluate")
        else:
            self._note(about)
            task = asyncio.create_task(self._tell_when_learned(said, receipt, time.monotonic()))
            self._lessons.add(task)
            task.add_done_callback(self._lessons.discard)

    async def _tell_when_learned(self, said: _Said, receipt: turnwise.Receipt, started: float) -> None:
        """Asks the same in a dialogue that teaches nothing, until a policy that knows the lesson answers."""
        try:
            async with self.bot.dialogue(user=self.user, mode="evaluate") as probe:
                while time.monotonic() - started < LEARN_WAIT_S:
                    turn = await probe.act(**said.seen)
                    if turn.learned_through >= receipt.journal_cursor:
                        took = (time.monotonic() - started) * 1000
                        answer = f"{turn.action} ({turn.q_values[turn.action]:+.2f})"
                        self._note(f"learned in {took:.0f} ms, version {turn.policy_version}: now {answer}")
                        return
                    await asyncio.sleep(_ASK_AGAIN_S)
            self._note(f"not learned within {LEARN_WAIT_S:g} s; `turnwise status` tells how far it is")
        except turnwise.TurnwiseError as error:
            self._failed(error)

    # ---- commands ---------------------------------------------------------------------------------

    async def _command(self, name: str, rest: str) -> None:
        if name == "fix":
            self._check_actions([rest], "/fix ACTION")
            await self._teach(f"correction to {rest}", lambda turn: turn.correct(rest))
        elif name == "undo":
            await self._undo()
        elif name == "end":
            await self._end(rest)
        elif name == "why":
            self._show_why()
        elif name == "slot":
            self._set_slot(rest)
        elif name == "allowed":
            self._set_allowed(rest.split())
        elif name == "say":
            await self._say(rest)
        elif name == "token":
            self._show_token()
        elif name == "quit":
            raise Quit
        elif name == "help":
            self._show_help()
        else:
            names = ", ".join(f"/{command}" for command in COMMANDS)
            raise _Mistake(f"there is no /{name}; there are {names}")

    async def _undo(self) -> None:
        if not self._taught:
            raise _Mistake("there is no feedback to take back")
        turn = self._taught[-1]
        await turn.retract()
        self._taught.pop()
        self._note(f"took back what was said about {turn.action} at turn {turn.index}")

    async def _end(self, rest: str) -> None:
        outcome, _, number = rest.partition(" ")
        if outcome not in OUTCOMES:
            raise _Mistake(f"/end OUTCOME: got {outcome!r}; wanted one of {', '.join(OUTCOMES)}")
        try:
            reward = float(number) if number else None
        except ValueError:
            raise _Mistake(f"/end OUTCOME REWARD: got {number!r}; wanted a number") from None
        if self._talk is None:
            raise _Mistake("there is no dialogue to end; the next line begins one")
        receipt = await self._talk.end(outcome=outcome, reward=reward)
        self._forget()
        where = "" if receipt.settled == "LEARNER" else ", kept on the actor's disk"
        self._note(f"ended: {outcome}{where}. The next line begins another dialogue.")

    def _set_slot(self, rest: str) -> None:
        if not rest:
            self._note(
                ", ".join(f"{name}={value}" for name, value in self.slots.items()) or "no slots are set"
            )
            return
        name, _, text = (part.strip() for part in rest.partition("="))
        if name not in self.domain.slots:
            known = ", ".join(self.domain.slots) or "none: this domain has no slots"
            raise _Mistake(f"/slot NAME=VALUE: got {name!r}; wanted one of {known}")
        if not text:
            self.slots.pop(name, None)
            return
        self.slots[name] = _slot_value(self.domain.slots[name], text)

    def _set_allowed(self, actions: list[str]) -> None:
        if actions and actions != ["all"]:
            self._check_actions(actions, "/allowed ACTION ...")
            self.allowed = actions
        elif actions:
            self.allowed = None
        self._note("allowed: " + (", ".join(self.allowed) if self.allowed else "all"))

    def _check_actions(self, actions: list[str], usage: str) -> None:
        for action in actions:
            if action not in self.domain.actions:
                raise _Mistake(f"{usage}: got {action!r}; wanted one of {', '.join(self.domain.actions)}")

    # ---- what the person sees -----------------------------------------------------------------------

    def _show_turn(self, turn: turnwise.AsyncTurn) -> None:
        others = sorted(turn.q_values.items(), key=lambda item: -item[1])
        others = [item for item in others if item[0] != turn.action][:_NEXT_BEST]
        following = ", ".join(f"{action} {value:+.2f}" for action, value in others)
        chosen = f"{turn.action} {turn.q_values[turn.action]:+.2f}, probability {turn.probability:.2f}"
        why = f"{chosen}, version {turn.policy_version}" + (f"; then {following}" if following else "")
        self._show(f"[bold cyan]bot>[/] {escape(turn.say)}")
        self._note(why)
        if not turn.recorded:
            self._show(
                "[red]![/] not recorded: the actor's disk spool is full; nothing is learned from this turn"
            )

    def _show_why(self) -> None:
        if self._last is None:
            raise _Mistake("there is no answer to explain yet")
        turn = self._last.turn
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("action")
        table.add_column("value", justify="right")
        table.add_column("says", style="dim")
        for action, phrase, value in self.ranked_actions():
            shown = "not allowed" if value is None else f"{value:+.3f}"
            name = f"[bold]{escape(action)}[/]" if action == turn.action else escape(action)
            table.add_row(name, shown, escape(phrase))
        self.console.print(table)
        seen = ", ".join(f"{name}={value!r}" for name, value in self._last.seen.items() if value)
        self._note(f"turn {turn.index} of {turn.dialogue_id}, decision {turn.decision_id}; it saw {seen}")
        self._note(f"version {turn.policy_version} has learned through {turn.learned_through}")

    def _show_token(self) -> None:
        if self._talk is None:
            raise _Mistake("there is no dialogue yet; say something first")
        self.console.print(self._talk.token, soft_wrap=True, markup=False, highlight=False)

    def _show_help(self) -> None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_row("+  -  0.5", "rate the last answer: best, worst, anything between")
        for name, (arguments, meaning) in COMMANDS.items():
            table.add_row(escape(f"/{name} {arguments}"), escape(meaning))
        table.add_row("anything else", "is said to the bot")
        self.console.print(table)

    def _failed(self, error: turnwise.TurnwiseError) -> None:
        self.failures += 1
        advice = "; nothing is lost, try again" if isinstance(error, turnwise.ActorUnavailable) else ""
        self._show(f"[red]![/] {escape(str(error))}{advice}")

    def _note(self, text: str) -> None:
        self.console.print(f"     {text}", style="dim", markup=False, highlight=False, soft_wrap=True)

    def _show(self, markup: str) -> None:
        self.console.print(markup, highlight=False, soft_wrap=True)


def _phrase(domain: turnwise.Domain, action: str) -> str:
    return (domain.actions[action] or ("",))[0]


def _slot_value(slot: turnwise.Slot, text: str) -> str | float | bool:
    if slot.type == "number":
        try:
            return float(text)
        except ValueError:
            raise _Mistake(f"/slot {slot.name}: got {text!r}; wanted a number") from None
    if slot.type == "bool":
        if text.lower() not in ("true", "false", "yes", "no"):
            raise _Mistake(f"/slot {slot.name}: got {text!r}; wanted true or false")
        return text.lower() in ("true", "yes")
    return text
