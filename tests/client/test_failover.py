import math
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial

import grpc
import pytest

import turnwise
from tests.waiting import eventually
from turnwise._routing import RoutingConfig
from turnwise.testing import FakeActor

ACTIONS = ["greet", "ask_size", "bye"]


@pytest.fixture(params=[True, False], ids=["converse", "unary"])
def pair(request):
    with ExitStack() as stack:
        actors = [FakeActor(ACTIONS, ACTIONS, converse=request.param) for _ in range(2)]
        yield [stack.enter_context(actor) for actor in actors]


@pytest.fixture
def bot(pair):
    with turnwise.Client([actor.address for actor in pair]) as client:
        yield client


def speak(bot, trouble, turns=60, dialogues=4):
    """Several dialogues at once; `trouble` happens in the middle of them. Returns their turns."""
    talks = [bot.dialogue() for _ in range(dialogues)]
    half = threading.Barrier(dialogues + 1)
    errors = []

    def one(talk):
        try:
            for number in range(turns):
                if number == turns // 2:
                    half.wait(20)
                talk.act(text="hello")
            talk.end()
        except (turnwise.TurnwiseError, threading.BrokenBarrierError) as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(talk,)) for talk in talks]
    for thread in threads:
        thread.start()
    half.wait(20)
    trouble()
    for thread in threads:
        thread.join()
    assert errors == []
    for talk in talks:
        assert [turn.index for turn in talk.turns] == list(range(turns))
    return talks


def test_both_actors_get_work(pair, bot):
    speak(bot, lambda: None)
    assert min(len(actor.received) for actor in pair) > 60


def test_no_turn_is_lost_when_an_actor_stops(pair, bot):
    speak(bot, pair[0].stop)
    assert len(pair[1].ends) == 4


def test_no_turn_is_lost_when_an_actor_hangs(pair, bot):
    begun = time.monotonic()
    speak(bot, lambda: pair[0].delay(math.inf))
    assert time.monotonic() - begun < 10
    assert bot.counters.hedges >= 1


def test_no_turn_is_lost_when_an_actor_drains(pair, bot):
    speak(bot, pair[0].drain)
    before = len(pair[0].received)
    bot.dialogue().act()
    assert len(pair[0].received) == before


def test_no_turn_is_lost_when_streams_break(pair, bot):
    def trouble():
        for actor in pair:
            actor.break_streams()

    speak(bot, trouble)


def test_a_retry_keeps_its_request_id(pair, bot):
    for actor in pair:
        actor.delay(0.45)
    turn = bot.dialogue().act()
    asked = [act for actor in pair for act in actor.received]
    assert len(asked) == 2
    assert len({act.request_id for act in asked}) == 1
    assert turn.action == "greet"


def test_a_silent_actor_costs_300_ms_once_in_a_while(pair, bot):
    talk = bot.dialogue()
    for _ in range(4):
        talk.act()
    pair[0].delay(math.inf)
    begun = time.monotonic()
    for _ in range(20):
        talk.act()
    assert 0.29 < time.monotonic() - begun < 3
    assert 1 <= bot.counters.hedges <= 4  # more than one only if this machine is overloaded


def test_an_actor_refusing_for_a_while_is_retried_until_it_takes_the_turn():
    with FakeActor() as actor, turnwise.Client(actor.address) as bot:
        talk = bot.dialogue()
        talk.act()
        actor.refuse(grpc.StatusCode.UNAVAILABLE, "no policy yet", "NO_POLICY", times=4)
        begun = time.monotonic()
        assert talk.act().index == 1
        assert 0.3 < time.monotonic() - begun < 5
        assert bot.counters.retries == 4


def test_an_actor_that_comes_back_at_its_address_is_found_again():
    first = FakeActor(ACTIONS, ACTIONS)
    with turnwise.Client(first.address) as bot, ExitStack() as stack:
        stack.enter_context(first)
        talk = bot.dialogue()
        talk.act()
        first.stop()
        port = int(first.address.rpartition(":")[2])

        def come_back():
            time.sleep(0.5)
            stack.enter_context(FakeActor(ACTIONS, ACTIONS, port=port))

        returning = threading.Thread(target=come_back)
        returning.start()
        assert talk.act().action == "ask_size"
        returning.join()


def test_an_actor_that_is_not_there_is_named_in_time():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with turnwise.Client(f"127.0.0.1:{port}", timeout=0.5) as bot:
        begun = time.monotonic()
        with pytest.raises(turnwise.ActorUnavailable, match=str(port)):
            bot.domain()
        with pytest.raises(turnwise.ActorUnavailable, match=str(port)):
            bot.dialogue().act()
        assert time.monotonic() - begun < 6


def test_a_renewed_stream_takes_over_without_a_retry():
    with FakeActor() as actor, turnwise.Client(actor.address) as bot:
        talk = bot.dialogue()
        talk.act()
        for streams in (2, 3):
            actor.delay(0.2)
            waiting = threading.Thread(target=talk.act)
            waiting.start()
            eventually(partial(lambda asked: len(actor.received) == asked, 2 * streams - 2))
            actor.renew_streams()
            waiting.join()
            actor.delay(0)
            talk.act()
            assert bot.counters.streams == streams
        eventually(lambda: actor.streams == 1)
        assert bot.counters.retries == 0


def test_a_call_has_a_deadline_of_its_own():
    with FakeActor() as actor, turnwise.Client(actor.address) as bot:
        actor.delay(math.inf)
        begun = time.monotonic()
        with pytest.raises(turnwise.DeadlineExceeded) as caught:
            bot.dialogue().act(timeout=0.2)
        assert isinstance(caught.value, TimeoutError)
        assert time.monotonic() - begun < 5


def test_a_connection_that_fell_silent_is_replaced():
    with FakeActor() as actor, turnwise.Client(actor.address) as bot:
        bot._engine._router._config = RoutingConfig(stall_s=0.5)
        talk = bot.dialogue()
        talk.act()
        actor.delay(math.inf)
        domains = []
        asking = threading.Thread(target=lambda: domains.append(bot.domain()))
        asking.start()
        threading.Timer(0.2, actor.delay, [0]).start()
        assert talk.act().index == 1
        asking.join()
        assert "greet" in domains[0].actions
        assert bot.counters.streams == 2


def test_more_than_256_calls_at_once_wait_for_room():
    with FakeActor() as actor, turnwise.Client(actor.address, timeout=30) as bot:
        most = 0
        actor.delay(1.5)  # long enough for a busy machine to start all the threads
        threads = [
            threading.Thread(target=bot.feedback, args=("d", "e"), kwargs={"reward": 1}) for _ in range(300)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            most = max(most, *(address.in_flight for address in bot._engine._router._addresses))
            time.sleep(0.005)
        assert len(actor.feedback) == 300
        assert 200 < most <= 256


def test_spooled_facts_are_settled_in_the_background():
    with FakeActor() as actor, turnwise.Client(actor.address) as bot:
        talk = bot.dialogue()
        turn = talk.act()
        actor.settled = "SPOOLED"
        receipt = turn.reward(1)
        assert receipt == turnwise.Receipt("SPOOLED", 0)
        assert talk.end().settled == "SPOOLED"
        assert bot.counters.unsettled == 2
        actor.settled = "LEARNER"
        eventually(lambda: bot.counters.unsettled == 0)
        assert bot.counters.resent == 2
        assert len({each.feedback_id for each in actor.feedback}) == 1
        assert len({end.request_id for end in actor.ends}) == 1


def test_closing_sends_spooled_facts_once_more():
    with FakeActor() as actor:
        with turnwise.Client(actor.address) as bot:
            turn = bot.dialogue().act()
            actor.settled = "SPOOLED"
            turn.reward(1)
            actor.settled = "LEARNER"
        assert len(actor.feedback) == 2
        assert (bot.counters.unsettled, bot.counters.resent) == (0, 1)


def test_closing_waits_two_seconds_at_most_for_spooled_facts():
    with FakeActor() as actor:
        bot = turnwise.Client(actor.address)
        turn = bot.dialogue().act()
        actor.settled = "SPOOLED"
        turn.reward(1)
        actor.delay(math.inf)
        begun = time.monotonic()
        bot.close()
        assert 1.5 < time.monotonic() - begun < 6
        assert bot.counters.given_up == 1


def test_close_waits_for_the_clients_threads(pair):
    bot = turnwise.Client([actor.address for actor in pair])
    for _ in range(4):
        bot.dialogue().act()
    pair[0].stop()
    for _ in range(4):
        bot.dialogue().act()
    bot.close()
    assert [each for each in threading.enumerate() if each.name.startswith("turnwise")] == []


def test_no_thread_is_left_when_client_and_actor_are_gone():
    before = set(threading.enumerate())
    with FakeActor() as actor, turnwise.Client(actor.address) as bot:
        bot.dialogue().act()
        assert set(threading.enumerate()) > before
    eventually(lambda: set(threading.enumerate()) <= before)


def test_a_client_that_is_dropped_ends_its_threads():
    with FakeActor() as actor:
        bot = turnwise.Client(actor.address)
        bot.dialogue().act()
        del bot
        eventually(lambda: not [each for each in threading.enumerate() if each.name.startswith("turnwise")])


def test_credentials_travel_with_each_stream_and_call():
    asked = []

    class Recorder(grpc.ServerInterceptor):
        def intercept_service(self, continuation, handler_call_details):
            details = handler_call_details
            asked.append(
                (details.method.rpartition("/")[2], dict(details.invocation_metadata)["authorization"])
            )
            return continuation(details)

    tokens = iter(["one", "two"])
    with (
        FakeActor(interceptors=[Recorder()]) as actor,
        turnwise.Client(actor.address, lambda: next(tokens)) as bot,
    ):
        bot.dialogue().act()
        bot.domain()
    assert asked == [("Converse", "Bearer one"), ("DescribeDomain", "Bearer two")]


def test_credentials_that_cannot_be_had_are_access_denied():
    def broken():
        raise OSError("no vault")

    with FakeActor() as actor, turnwise.Client(actor.address, credentials=broken) as bot:
        for call in (bot.domain, bot.dialogue().act):
            with pytest.raises(turnwise.AccessDenied, match="no vault"):
                call()
