"""`turnwise chat`: talk to the bot and teach it."""

import asyncio
import contextlib
import getpass
import signal
import sys
from collections.abc import Coroutine, Iterable
from typing import Any

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.patch_stdout import patch_stdout
from rich.console import Console

import turnwise
from turnwise_actor.access.client_access import ClientAccess
from turnwise_cli.access import access_options, client
from turnwise_cli.conversation import COMMANDS, OUTCOMES, Conversation, Quit

_TOOLBAR = " + - rate the answer   /fix ACTION teaches   /undo   /end OUTCOME   /why   /help   Ctrl-D leaves"


@click.command(short_help="Talk to the bot and teach it.")
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@click.option("--user", help="Who talks and teaches; default: the login name.")
@click.option(
    "--mode",
    type=click.Choice(["teach", "serve", "shadow", "evaluate"]),
    default="teach",
    show_default=True,
    help="evaluate: answers greedily, learns nothing.",
)
@access_options
@click.option("--resume", "token", metavar="TOKEN", help="Go on with the dialogue of this token.")
def command(
    addresses: tuple[str, ...], user: str | None, mode: str, token: str | None, access: ClientAccess
) -> int:
    """Talk to the bot at ADDRESS (default localhost:50051) and teach it.

    An ADDRESS is an actor's HOST:PORT, dns:///NAME:PORT for all actors of a name, or learner://HOST:PORT for
    those of a learner.

    Typed lines are said to the bot. `+`, `-` and numbers rate its last answer, `/fix ACTION` says which
    would have been right; `/help` lists the rest. Lines can be piped in, too: exit code 1 when one of
    them could not be carried out.
    """
    where = list(addresses) or ["localhost:50051"]
    return asyncio.run(_chat(where, access, _login_name() if user is None else user, mode, token))


async def _chat(addresses: list[str], access: ClientAccess, user: str, mode: str, token: str | None) -> int:
    async with client(addresses, access) as bot:
        conversation = Conversation(bot, Console(), user, mode)
        try:
            await conversation.open(token)
        except (turnwise.ActorUnavailable, turnwise.DeadlineExceeded) as error:
            where = ", ".join(addresses)
            raise click.ClickException(
                f"no actor answers at {where}; is `turnwise up` running? {error}"
            ) from error
        except turnwise.TurnwiseError as error:
            raise click.ClickException(str(error)) from error
        try:
            with contextlib.suppress(Quit):
                await (type_lines(conversation) if sys.stdin.isatty() else _read(conversation))
        finally:
            await conversation.close()
    return 0 if sys.stdin.isatty() or not conversation.failures else 1


async def type_lines(conversation: Conversation) -> None:
    """Lines from a keyboard; answers and news of lessons appear above what is being typed."""
    session: PromptSession[str] = PromptSession(
        completer=LineCompleter(conversation), complete_while_typing=True, bottom_toolbar=_TOOLBAR
    )
    with patch_stdout(raw=True):
        while True:
            try:
                line = await session.prompt_async("you> ")
            except KeyboardInterrupt:  # the line is cleared
                continue
            except EOFError:
                return
            await _interruptible(conversation.handle(line))


async def _read(conversation: Conversation) -> None:
    """Lines from a pipe or a file, each done with before the next."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        conversation.console.print(f"you> {line.rstrip()}", markup=False, highlight=False)
        await conversation.handle(line)
        await conversation.lessons_shown()


async def _interruptible(work: Coroutine[Any, Any, None]) -> None:
    """Waits for the work; Ctrl-C gives up on it, not on the chat."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()
    finally:
        loop.remove_signal_handler(signal.SIGINT)


class LineCompleter(Completer):
    """Completes commands and what follows them; says nothing about words for the bot."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Candidates for the word before the cursor, best first."""
        line = document.text_before_cursor.lstrip()
        if not line.startswith("/"):
            return
        name, space, _ = line[1:].partition(" ")
        word = line.rpartition(" ")[2] if space else name
        for text, meta in self._arguments(name) if space else self._commands():
            if text.startswith(word):
                yield Completion(text, start_position=-len(word), display_meta=meta)

    def _commands(self) -> Iterable[tuple[str, str]]:
        return [(name, f"{arguments} {meaning}".strip()) for name, (arguments, meaning) in COMMANDS.items()]

    def _arguments(self, name: str) -> Iterable[tuple[str, str]]:
        if name in ("fix", "allowed"):
            for action, phrase, value in self._conversation.ranked_actions():
                yield action, phrase if value is None else f"{value:+.2f}  {phrase}"
        elif name == "end":
            for outcome in OUTCOMES:
                yield outcome, ""
        elif name == "slot":
            for slot in self._conversation.domain.slots.values():
                known = slot.categories or (("true", "false") if slot.type == "bool" else ("",))
                for choice in known:
                    yield f"{slot.name}={choice}", slot.type


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
