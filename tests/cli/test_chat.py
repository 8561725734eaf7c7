"""The chat verb over a fake actor: piped lines, a keyboard, and a terminal."""

import asyncio
import contextlib
import io
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import grpc
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

import turnwise
from turnwise.testing import FakeActor
from turnwise_cli.chat import LineCompleter, type_lines
from turnwise_cli.conversation import COMMANDS, Conversation, Quit

REPOSITORY = Path(__file__).parents[2]
ACTIONS = {"greet": "Hello!", "ask_size": "Which size?", "bye": "Goodbye!"}
LEARNED = 10**9


@pytest.fixture
def actor():
    with FakeActor(ACTIONS, slots={"vip": bool, "items": float, "intent": ["greet", "order"]}) as fake:
        fake.learned_through = LEARNED
        yield fake


class Chat:
    """A conversation whose console is a string."""

    def __init__(self, bot, mode="teach"):
        self.shown = io.StringIO()
        self.conversation = Conversation(bot, Console(file=self.shown, width=200), "ann", mode)

    async def say(self, *lines):
        """Types lines; what is shown for the last of them."""
        for line in lines:
            self.shown.seek(0)
            self.shown.truncate()
            await self.conversation.handle(line)
            await self.conversation.lessons_shown()
        return self.shown.getvalue()


@pytest.fixture
async def chat(actor):
    async with turnwise.AsyncClient(actor.address) as bot:
        chat = Chat(bot)
        await chat.conversation.open()
        yield chat
        await chat.conversation.close()


def given(actor):
    return [(each.kind, each.value) for each in actor.feedback]


async def test_an_answer_is_shown_with_its_reasons(chat):
    shown = await chat.say("good morning")
    assert "bot> Hello!" in shown
    assert "greet +1.00, probability 1.00, version 1.1; then ask_size +0.00, bye +0.00" in shown


async def test_plus_minus_and_numbers_rate_the_last_answer(chat, actor):
    await chat.say("hi", "+", "-", "0.5", "-.25")
    assert given(actor) == [("reward", 1.0), ("reward", -1.0), ("reward", 0.5), ("reward", -0.25)]
    assert {each.teacher for each in actor.feedback} <= {"", "ann"}


async def test_plus_and_minus_are_the_ends_of_the_range():
    with FakeActor(ACTIONS, reward_range=(1, 5)) as actor:
        actor.learned_through = LEARNED
        async with turnwise.AsyncClient(actor.address) as bot:
            chat = Chat(bot)
            await chat.conversation.open()
            await chat.say("hi", "+", "-")
            await chat.conversation.close()
        assert given(actor) == [("reward", 5.0), ("reward", 1.0)]


async def test_it_tells_when_a_lesson_has_been_learned(chat, actor):
    shown = await chat.say("hi", "+")
    assert "learned in" in shown
    assert "version 1.1: now greet (+1.00)" in shown
    assert [act.mode for act in actor.received] == ["teach", "evaluate"]


async def test_it_tells_when_a_lesson_takes_long(chat, actor):
    actor.learned_through = 0
    assert "not learned within 1 s" in await chat.say("hi", "+")


async def test_a_lesson_kept_on_the_actors_disk_is_told(chat, actor):
    actor.settled = "SPOOLED"
    assert "kept on the actor's disk" in await chat.say("hi", "+")


async def test_fix_corrects_and_names_the_actions_when_it_knows_no_such_one(chat, actor):
    await chat.say("hi", "/fix ask_size")
    assert given(actor) == [("correction", "ask_size")]
    assert "got 'sing'; wanted one of greet, ask_size, bye" in await chat.say("/fix sing")


async def test_undo_takes_back_the_feedback_of_one_turn_at_a_time(chat, actor):
    await chat.say("one", "+", "two", "-", "/fix bye", "/undo", "/undo")
    first, second = actor.feedback[0].decision_id, actor.feedback[1].decision_id
    retracted = [each.decision_id for each in actor.feedback if each.kind == "retraction"]
    assert retracted == [second, first]
    assert "no feedback to take back" in await chat.say("/undo")


async def test_end_ends_and_the_next_line_begins_another(chat, actor):
    await chat.say("hi", "/end success 1")
    assert [(end.outcome, end.reward) for end in actor.ends] == [("success", 1.0)]
    assert "wanted one of success" in await chat.say("/end well")
    await chat.say("again")
    assert len(actor.started) == 2
    await chat.conversation.close()
    assert [end.outcome for end in actor.ends] == ["success", "abandoned"]


async def test_slots_and_allowed_hold_for_the_next_turns(chat, actor):
    await chat.say("/slot vip=yes", "/slot items=3", "/slot intent=order", "/allowed ask_size bye", "hi")
    assert actor.received[-1].slots == {"vip": True, "items": 3.0, "intent": "order"}
    assert actor.received[-1].allowed == ("ask_size", "bye")
    await chat.say("/slot vip=", "/allowed all", "hi")
    assert actor.received[-1].slots == {"items": 3.0, "intent": "order"}
    assert actor.received[-1].allowed == ("greet", "ask_size", "bye")
    assert "wanted a number" in await chat.say("/slot items=many")
    assert "wanted one of vip, items, intent" in await chat.say("/slot colour=red")


async def test_why_lists_all_values(chat):
    shown = await chat.say("hi", "/why")
    assert all(action in shown for action in ACTIONS)
    assert "text='hi'" in shown


async def test_an_unknown_command_lists_those_there_are(chat):
    shown = await chat.say("/dance")
    assert all(f"/{name}" in shown for name in COMMANDS)


async def test_words_that_look_like_a_reward_can_be_said(chat, actor):
    assert "no answer to rate yet" in await chat.say("2")
    await chat.say("/say 2")
    assert actor.received[-1].text == "2"


async def test_an_error_is_one_line_and_the_dialogue_goes_on(chat, actor):
    await chat.say("hi")
    actor.refuse(grpc.StatusCode.INVALID_ARGUMENT, "not today")
    shown = await chat.say("how are you")
    assert shown.count("\n") == 1
    assert "not today" in shown
    await chat.say("how are you")
    assert [act.index for act in actor.received] == [0, 1]
    assert len(actor.started) == 1


async def test_after_an_ended_dialogue_the_next_line_begins_another(chat, actor):
    await chat.say("hi")
    actor.refuse(grpc.StatusCode.FAILED_PRECONDITION, "it has ended", reason="DIALOGUE_ENDED")
    assert "it has ended" in await chat.say("more")
    await chat.say("more")
    assert len(actor.started) == 2


async def test_quit_leaves(chat):
    with pytest.raises(Quit):
        await chat.say("/quit")


async def test_a_resumed_dialogue_goes_on_and_is_left_as_it_is(chat, actor):
    await chat.say("hi")
    token = (await chat.say("/token")).strip()
    async with turnwise.AsyncClient(actor.address) as bot:
        later = Chat(bot)
        await later.conversation.open(token)
        await later.say("here again")
        await later.conversation.close()
    assert [act.index for act in actor.received] == [0, 1]
    assert actor.ends == []


async def test_completions_are_ranked_by_value_and_say_what_they_say(chat, actor):
    await chat.say("/allowed bye", "hi")
    completer = LineCompleter(chat.conversation)

    def completed(line):
        return list(completer.get_completions(Document(line), None))  # type: ignore[arg-type]

    assert [each.text for each in completed("/fix ")] == ["bye", "greet", "ask_size"]
    assert completed("/fix b")[0].display_meta_text == "+1.00  Goodbye!"
    assert [each.text for each in completed("/end s")] == ["success"]
    assert [each.text for each in completed("/slot in")] == ["intent=greet", "intent=order"]
    assert {each.text for each in completed("/")} == set(COMMANDS)
    assert completed("hello") == []


async def test_ctrl_c_clears_the_line_and_ctrl_d_leaves(actor):
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        async with turnwise.AsyncClient(actor.address) as bot:
            chat = Chat(bot)
            await chat.conversation.open()
            typing = asyncio.create_task(type_lines(chat.conversation))
            for keys in ("forget this\x03", "hello\r", "+\r", "\x04"):
                keyboard.send_text(keys)
                await asyncio.sleep(0.1)
            await asyncio.wait_for(typing, 10)
            await chat.conversation.close()
    assert [act.text for act in actor.received if act.mode == "teach"] == ["hello"]
    assert given(actor) == [("reward", 1.0)]
    assert [end.outcome for end in actor.ends if end.dialogue_id == actor.started[0]] == ["abandoned"]


def command(*arguments):
    parts = [str(REPOSITORY / part) for part in ("client", "actor", "learner", "deploy")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(parts), "TERM": "xterm"}
    return [sys.executable, "-m", "turnwise_cli", "chat", *arguments], environment


def test_lines_can_be_piped_in(actor):
    chat, environment = command(actor.address, "--user", "ann", "--mode", "serve")
    lines = "hello\n+\n/fix bye\n/end goodbye\n"
    done = subprocess.run(chat, env=environment, input=lines, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "bot> Hello!" in done.stdout
    assert done.stdout.count("learned in") == 2
    assert "Traceback" not in done.stderr
    assert (actor.received[0].user, actor.received[0].mode) == ("ann", "serve")
    assert [end.outcome for end in actor.ends if end.dialogue_id == actor.started[0]] == ["goodbye"]


def test_a_piped_line_that_fails_shows_in_the_exit_code(actor):
    chat, environment = command(actor.address)
    done = subprocess.run(chat, env=environment, input="/dance\n", capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "there is no /dance" in done.stdout


def test_no_actor_is_one_clear_line():
    chat, environment = command("127.0.0.1:1")
    done = subprocess.run(chat, env=environment, input="", capture_output=True, text=True, timeout=40)
    assert done.returncode == 1
    assert "no actor answers at 127.0.0.1:1; is `turnwise up` running?" in done.stderr
    assert "Traceback" not in done.stderr


def test_at_a_terminal_it_talks_and_ctrl_c_is_no_traceback(actor):
    chat, environment = command(actor.address)
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (30, 120))
    process = subprocess.Popen(chat, env=environment, stdin=there, stdout=there, stderr=there)
    os.close(there)
    screen = shown = b""

    def until(text):
        nonlocal screen, shown
        deadline = time.monotonic() + 20
        while text not in screen:
            assert time.monotonic() < deadline, shown
            if select.select([here], [], [], 0.2)[0]:
                read = os.read(here, 4096)
                screen, shown = screen + read, shown + read
        screen = screen.partition(text)[2]

    def prompted_after(text):
        """Keys pressed before the prompt is back may be lost with the terminal's mode."""
        until(text)
        until(b"you>")

    with process:
        try:
            until(b"you>")
            os.write(here, b"hello\r")
            prompted_after(b"Hello!")
            os.write(here, b"forget this")
            until(b"this")
            os.write(here, b"\x03")
            until(b"you>")
            os.write(here, b"+\r")
            prompted_after(b"learned in")
            os.write(here, b"\x04")
            deadline = time.monotonic() + 20
            while process.poll() is None:  # and read on: a full terminal blocks who writes to it
                assert time.monotonic() < deadline, shown
                if select.select([here], [], [], 0.2)[0]:
                    with contextlib.suppress(OSError):  # its other end is closed
                        shown += os.read(here, 4096)
            assert process.returncode == 0
        finally:
            process.kill()
            os.close(here)
    assert b"Traceback" not in shown
    assert given(actor) == [("reward", 1.0)]
