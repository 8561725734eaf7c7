import asyncio
import math
import time
from contextlib import ExitStack

import pytest

import turnwise
from turnwise._routing import RoutingConfig
from turnwise.testing import FakeActor

ACTIONS = ["greet", "ask_size", "bye"]


@pytest.fixture(params=[True, False], ids=["converse", "unary"])
def pair(request):
    with ExitStack() as stack:
        actors = [FakeActor(ACTIONS, ACTIONS, converse=request.param) for _ in range(2)]
        yield [stack.enter_context(actor) for actor in actors]


@pytest.fixture
async def bot(pair):
    async with turnwise.AsyncClient([actor.address for actor in pair]) as client:
        yield client


async def test_a_dialogue_from_beginning_to_end(pair, bot):
    async with bot.dialogue(id="d", user="ann", mode="serve") as talk:
        turn = await talk.act(text="hello", slots={"vip": True})
        assert (turn.action, turn.index, turn.q_values["greet"]) == ("greet", 0, 1.0)
        assert (await turn.reward(1, "good")).settled == "LEARNER"
        await turn.correct("bye")
        await turn.retract()
        await turn.overridden("bye", 0.5)
        await turn.dropped()
        fork = talk.fork(0)
        assert (await fork.act()).index == 1
        again = bot.resume(talk.token)
        assert (await again.act()).action == "ask_size"
        await talk.end("success", reward=1)
        with pytest.raises(turnwise.DialogueEnded):
            await talk.act()
    await bot.feedback("d", turn.decision_id, reward=0.5)
    assert list((await bot.domain()).actions) == ACTIONS
    kinds = sorted(each.kind for actor in pair for each in actor.feedback)
    assert kinds == ["correction", "dropped", "overridden", "retraction", "reward", "reward"]
    assert [end.outcome for actor in pair for end in actor.ends] == ["success"]


async def test_leaving_the_block_truncates(pair, bot):
    async with bot.dialogue():
        pass
    with pytest.raises(RuntimeError, match="mine"):
        async with bot.dialogue():
            raise RuntimeError("mine")
    assert [end.outcome for actor in pair for end in actor.ends] == ["abandoned"] * 2


@pytest.mark.parametrize("trouble", ["stop", "hang", "drain", "break"])
async def test_no_turn_is_lost(trouble, pair, bot):
    troubles = {
        "stop": pair[0].stop,
        "hang": lambda: pair[0].delay(math.inf),
        "drain": pair[0].drain,
        "break": lambda: [actor.break_streams() for actor in pair],
    }
    reached = asyncio.Event()

    async def speak(talk):
        for number in range(40):
            if number == 20:
                reached.set()
            await talk.act(text="hello")
        await talk.end()

    async def make_trouble():
        await reached.wait()
        await asyncio.to_thread(troubles[trouble])

    talks = [bot.dialogue() for _ in range(6)]
    await asyncio.gather(make_trouble(), *map(speak, talks))
    for talk in talks:
        assert [turn.index for turn in talk.turns] == list(range(40))


async def test_a_second_actor_is_asked_after_300_ms(pair, bot):
    talk = bot.dialogue()
    await talk.act()
    pair[0].delay(math.inf)
    before = bot.counters.hedges  # an overloaded machine may be slow to make the first connections
    begun = time.monotonic()
    limit = begun + 20
    while bot.counters.hedges == before:
        begun = time.monotonic()
        await talk.act()
        assert begun < limit
    assert 0.29 < time.monotonic() - begun < 5


async def test_two_tasks_on_one_dialogue_take_turns(bot):
    talk = bot.dialogue()
    await asyncio.gather(*(talk.act() for _ in range(5)))
    assert [turn.index for turn in talk.turns] == [0, 1, 2, 3, 4]


async def test_errors_are_those_of_the_blocking_client(pair, bot):
    turn = await bot.dialogue().act()
    with pytest.raises(turnwise.InvalidRequest, match=r"reward: got 5\.0; wanted -1 to 1"):
        await turn.reward(5)
    with pytest.raises(turnwise.InvalidRequest, match="reward: got nan; wanted a finite number"):
        await turn.reward(math.nan)
    for actor in pair:
        actor.delay(math.inf)
    with pytest.raises(turnwise.DeadlineExceeded):
        await bot.dialogue().act(timeout=0.1)


async def test_a_cancelled_call_leaves_the_client_usable(pair, bot):
    talk = bot.dialogue()
    await talk.act()
    for actor in pair:
        actor.delay(math.inf)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(talk.act(), 0.1)
    for actor in pair:
        actor.delay(0)
    assert (await talk.act()).index == 1


async def test_spooled_facts_are_settled_in_the_background(pair, bot):
    turn = await bot.dialogue().act()
    for actor in pair:
        actor.settled = "SPOOLED"
    assert (await turn.reward(1)).settled == "SPOOLED"
    assert bot.counters.unsettled == 1
    for actor in pair:
        actor.settled = "LEARNER"

    async def settled():
        while bot.counters.unsettled:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(settled(), 10)
    assert bot.counters.resent == 1


async def test_no_task_is_left_after_close(pair):
    before = asyncio.all_tasks()
    bot = turnwise.AsyncClient([actor.address for actor in pair])
    turn = await bot.dialogue().act()
    for actor in pair:
        actor.settled = "SPOOLED"
    await turn.reward(1)
    for actor in pair:
        actor.settled = "LEARNER"
    waiting = asyncio.ensure_future(bot.dialogue().act())
    await bot.close()
    await bot.close()
    await asyncio.wait([waiting])
    waiting.exception()
    for _ in range(500):  # grpc.aio's own tasks end a moment later
        if asyncio.all_tasks() == before:
            break
        await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before
    assert sum(len(actor.feedback) for actor in pair) == 2
    with pytest.raises(turnwise.ClientClosed):
        await bot.dialogue().act()


async def test_a_connection_that_fell_silent_is_replaced():
    with FakeActor() as actor:
        async with turnwise.AsyncClient(actor.address) as bot:
            bot._engine._router._config = RoutingConfig(stall_s=0.5)
            talk = bot.dialogue()
            await talk.act()
            actor.delay(math.inf)
            calls = asyncio.gather(talk.act(), bot.domain())
            await asyncio.sleep(0.2)
            actor.delay(0)
            turn, domain = await calls
            assert turn.index == 1
            assert "greet" in domain.actions
            assert bot.counters.streams == 2
