"""The Router with a clock of the test's own, and no network."""

from itertools import pairwise
from typing import Any

import pytest

import turnwise
from turnwise._requests import new_id
from turnwise._resend import ResendConfig, Resender
from turnwise._routing import Call, Router
from turnwise.v1 import dialogue_pb2 as pb

UNAVAILABLE = turnwise.ActorUnavailable("away")


class Wire:
    """Records what the Router wants sent."""

    def __init__(self):
        self.opened, self.sent, self.finished, self.reset_streams, self.calls = [], [], [], [], []
        self.released = []

    def open(self, stream):
        self.opened.append(stream)

    def send(self, stream, message):
        self.sent.append((stream, message))

    def finish(self, stream):
        self.finished.append(stream)

    def reset(self, stream):
        self.reset_streams.append(stream)

    def call(self, attempt, timeout_s):
        self.calls.append((attempt, timeout_s))

    def release(self, address):
        self.released.append(address)


class World:
    def __init__(self, *targets, resend=None):
        self.now = 1000.0
        self.wire = Wire()
        self.router = Router(targets, self.wire, lambda: self.now)
        self.resender = Resender(self.router, lambda: self.now, resend)
        self.outcomes: dict[Call, Any] = {}

    def submit(self, timeout_s=10.0, request=None):
        request = request or pb.ActRequest(request_id=new_id())
        call = Call(request, self.now + timeout_s, lambda outcome: self.outcomes.setdefault(call, outcome))
        self.router.submit(call)
        return call

    def advance(self, seconds):
        end = self.now + seconds
        while (at := self.router.next_timer()) is not None and at <= end:
            self.now = max(self.now, at)
            self.router.tick()
        self.now = end

    def targets(self):
        """Where each send went, in order."""
        return [stream.address.target for stream, _ in self.wire.sent]

    def answer(self, place: int = -1, **reply: Any):
        stream, message = self.wire.sent[place]
        reply = reply or {"turn": pb.Turn(action="greet")}
        self.router.received(stream, pb.ConverseReply(correlation_id=message.correlation_id, **reply))

    def in_flight(self):
        return [address.in_flight for address in self.router._addresses]


def test_requests_go_to_the_least_loaded_and_ties_rotate():
    world = World("a", "b", "c")
    for _ in range(6):
        world.submit()
    assert sorted(world.targets()[:3]) == sorted(world.targets()[3:]) == ["a", "b", "c"]
    free = world.targets().index("b")
    world.answer(free)
    world.submit()
    assert world.targets()[-1] == "b"
    quiet = World("a", "b")
    for _ in range(4):
        quiet.submit()
        quiet.answer()
    assert sorted(quiet.targets()) == ["a", "a", "b", "b"]


def test_one_stream_an_address_carries_many_calls():
    world = World("a")
    calls = [world.submit() for _ in range(10)]
    assert len(world.wire.opened) == 1
    for place in reversed(range(10)):
        world.answer(place)
    assert [world.outcomes[call].action for call in calls] == ["greet"] * 10
    assert world.in_flight() == [0]


def test_no_more_than_256_are_in_flight_and_the_others_wait():
    world = World("a")
    calls = [world.submit() for _ in range(300)]
    assert len(world.wire.sent) == 256
    world.answer(0)
    assert len(world.wire.sent) == 257
    for place in range(1, 300):
        world.answer(place)
    assert len(world.outcomes) == 300
    assert all(call.finished for call in calls)


def test_who_finds_no_room_until_the_deadline_is_told_why():
    world = World("a")
    for _ in range(256):
        world.submit(timeout_s=20)
    late = world.submit(timeout_s=1)
    world.advance(1)
    assert isinstance(world.outcomes[late], turnwise.DeadlineExceeded)
    assert "256 requests in flight" in str(world.outcomes[late])


def test_after_300_ms_of_silence_a_second_actor_is_asked_and_the_first_answer_wins():
    world = World("a", "b")
    call = world.submit()
    world.advance(0.29)
    assert len(world.wire.sent) == 1
    world.advance(0.02)
    assert set(world.targets()) == {"a", "b"}
    first, second = (message.act.request_id for _, message in world.wire.sent)
    assert first == second
    world.answer(0, turn=pb.Turn(action="first"))
    world.answer(1, turn=pb.Turn(action="second"))
    assert world.outcomes[call].action == "first"
    assert world.in_flight() == [0, 0]
    assert world.router.counters.hedges == 1


def test_a_silent_actor_is_avoided_until_it_speaks():
    world = World("a", "b")
    world.submit()
    silent = world.targets()[0]
    world.advance(0.31)
    world.answer(1)
    for _ in range(5):
        world.submit()
        assert world.targets()[-1] != silent
        world.answer()
    world.answer(0)
    for _ in range(2):
        world.submit()
    assert set(world.targets()[-2:]) == {"a", "b"}


def test_when_all_are_slow_a_request_is_sent_twice_at_most():
    world = World("a", "b", "c", "d")
    for _ in range(4):
        world.submit()
    world.advance(2)
    assert len(world.wire.sent) <= 8


def test_unavailable_goes_elsewhere_at_once():
    world = World("a", "b")
    call = world.submit()
    world.router.broke(world.wire.opened[0], UNAVAILABLE)
    assert set(world.targets()) == {"a", "b"}
    world.answer()
    assert world.outcomes[call].action == "greet"
    assert world.router.counters.retries == 1


def refuse(world):
    """The last request was more than the actor could keep."""
    stream, message = world.wire.sent[-1]
    error = turnwise.ActorUnavailable("the disk is full", reason="NOT_RECORDED")
    world.router.failed(stream.attempts[message.correlation_id], error)


def test_who_cannot_keep_feedback_still_answers_turns():
    world = World("a", "b")
    for _ in range(8):  # of one after the other, an unavailable actor would be left alone for a second
        feedback = world.submit(timeout_s=10)
        refuse(world)
        refuse(world)
        assert set(world.targets()[-2:]) == {"a", "b"}
        turn = world.submit()
        world.answer()
        assert world.outcomes[turn].action == "greet"
        assert feedback not in world.outcomes


def test_what_nobody_can_keep_is_tried_again_less_and_less_often_until_the_deadline():
    world = World("a", "b")
    call = world.submit(timeout_s=10)
    at = []
    while call not in world.outcomes:
        if len(world.wire.sent) > len(at):
            at.append(world.now)
            refuse(world)
        else:
            world.advance(0.01)
    assert {"a", "b"} == set(world.targets()[:2]) == set(world.targets()[2:4])
    pauses = [b - a for a, b in pairwise(at)]
    assert pauses[0] == 0
    assert 0.03 < pauses[1] < 0.08
    assert max(pauses) < 1.3
    assert 15 < len(at) < 40
    assert world.outcomes[call].reason == "NOT_RECORDED"
    assert isinstance(world.outcomes[call], turnwise.ActorUnavailable)


@pytest.mark.parametrize("how", ["status", "break"])
def test_a_single_unavailable_actor_is_asked_again_with_backoff_until_the_deadline(how):
    world = World("a")
    call = world.submit(timeout_s=10)
    at = []
    while call not in world.outcomes:
        if len(world.wire.sent) > len(at):
            at.append(world.now)
            if how == "status":
                world.answer(status={"code": 14, "message": "no policy"})
            else:
                world.router.broke(world.wire.opened[-1], UNAVAILABLE)
        world.advance(0.01)
    assert isinstance(world.outcomes[call], turnwise.ActorUnavailable)
    gaps = [after - before for before, after in pairwise(at)]
    assert gaps[0] < 0.1
    assert 0.7 < gaps[-1] < 1.3
    assert 10 < len(at) < 20
    assert 9.9 < world.now - 1000 < 10.1


def test_an_answer_that_would_not_change_is_final():
    world = World("a", "b")
    call = world.submit()
    world.answer(status={"code": 3, "message": "bad"})
    assert isinstance(world.outcomes[call], turnwise.InvalidRequest)
    assert len(world.wire.sent) == 1


def test_in_flight_requests_of_a_broken_stream_are_sent_again_on_a_new_one():
    world = World("a")
    calls = [world.submit() for _ in range(3)]
    ids = [message.act.request_id for _, message in world.wire.sent]
    world.router.broke(world.wire.opened[0], UNAVAILABLE)
    world.advance(0.1)
    assert len(world.wire.opened) == 2
    assert [message.act.request_id for _, message in world.wire.sent[3:]] == ids
    for place in (3, 4, 5):
        world.answer(place)
    assert set(world.outcomes) == set(calls)


def test_a_request_that_breaks_every_stream_is_given_up():
    world = World("a")
    call = world.submit()
    for _ in range(3):
        world.router.broke(world.wire.opened[-1], turnwise.Overloaded("too large"))
        world.advance(1.5)
    assert isinstance(world.outcomes[call], turnwise.Overloaded)
    assert len(world.wire.opened) == 3


def test_a_draining_stream_answers_what_is_in_flight_and_gets_no_more():
    world = World("a", "b")
    call = world.submit()
    drained = world.wire.opened[0]
    world.router.received(drained, pb.ConverseReply(draining=pb.Draining()))
    assert world.wire.finished == []
    for _ in range(3):
        world.submit()
        assert world.targets()[-1] != drained.address.target
        world.answer()
    world.answer(0)
    assert call in world.outcomes
    assert world.wire.finished == [drained]
    world.router.broke(drained, None)
    assert world.router.counters.retries == 0


def test_a_draining_stream_is_replaced_at_the_same_actor_if_there_is_no_other():
    world = World("a")
    world.submit()
    world.router.received(world.wire.opened[0], pb.ConverseReply(draining=pb.Draining()))
    world.submit()
    assert len(world.wire.opened) == 2
    assert world.wire.sent[1][0] is world.wire.opened[1]


def test_a_stream_silent_for_long_is_given_up_with_its_connection():
    world = World("a")
    call = world.submit(timeout_s=10)
    world.advance(4.5)
    assert world.wire.reset_streams == []
    world.advance(1)
    assert world.wire.reset_streams == [world.wire.opened[0]]
    assert len(world.wire.sent) == 2
    world.answer()
    assert world.outcomes[call].action == "greet"


def test_a_server_without_streams_gets_unary_calls():
    world = World("a")
    world.submit()
    world.router.broke(world.wire.opened[0], turnwise.NotSupported("no streams"))
    world.submit()
    assert len(world.wire.opened) == 1
    assert len(world.wire.calls) == 2
    attempt, timeout_s = world.wire.calls[0]
    assert timeout_s == pytest.approx(10)
    world.router.answered(attempt, pb.Turn(action="greet"))
    assert world.outcomes[attempt.call].action == "greet"


def test_bad_credentials_are_not_tried_again():
    world = World("a", "b")
    call = world.submit()
    world.router.broke(world.wire.opened[0], turnwise.AccessDenied("who are you?"))
    assert isinstance(world.outcomes[call], turnwise.AccessDenied)


def test_credentials_that_expire_on_a_running_stream_are_renewed_with_the_next():
    world = World("a")
    world.submit()
    world.answer()
    call = world.submit()
    world.router.broke(world.wire.opened[0], turnwise.AccessDenied("expired"))
    world.advance(0.1)
    world.answer()
    assert world.outcomes[call].action == "greet"


def test_a_deadline_passes_without_an_answer():
    world = World("a")
    call = world.submit(timeout_s=2)
    assert world.wire.sent[0][1].timeout_ms == 2000
    world.advance(2)
    assert isinstance(world.outcomes[call], turnwise.DeadlineExceeded)
    assert world.in_flight() == [0]
    world.answer()  # late: nobody waits
    assert isinstance(world.outcomes[call], turnwise.DeadlineExceeded)


def test_a_cancelled_call_leaves_nothing_behind():
    world = World("a")
    call = world.submit(timeout_s=2)
    world.router.cancel(call)
    world.advance(3)
    assert world.in_flight() == [0]
    assert world.router.next_timer() is None


def test_a_closed_router_fails_all_calls():
    world = World("a")
    calls = [world.submit() for _ in range(300)]
    world.router.close()
    calls.append(world.submit())
    assert {type(world.outcomes[call]) for call in calls} == {turnwise.ClientClosed}


def test_a_short_call_tries_an_actor_in_its_backoff_once():
    world = World("a")
    for _ in range(8):
        world.submit(timeout_s=0.01)
        world.router.broke(world.wire.opened[-1], UNAVAILABLE)
        world.advance(0.01)
    assert len(world.wire.sent) == 8
    assert {type(outcome) for outcome in world.outcomes.values()} == {turnwise.ActorUnavailable}


SPOOLED: dict[str, Any] = {"receipt": pb.Receipt(settled=pb.Receipt.SPOOLED)}
LEARNER: dict[str, Any] = {"receipt": pb.Receipt(settled=pb.Receipt.LEARNER, journal_cursor=7)}


def spooling(count, **config):
    world = World("a", resend=ResendConfig(**config))
    for number in range(count):
        world.submit(request=pb.FeedbackRequest(feedback_id=str(number)))
        world.answer(**SPOOLED)
    return world


def test_spooled_facts_are_sent_again_oldest_first_until_the_learner_has_them():
    world = spooling(3)
    assert world.router.counters.unsettled == 3
    pauses, sent = [], 3
    for _ in range(7):
        before = world.now
        while len(world.wire.sent) == sent:
            world.advance(0.1)
        pauses.append(world.now - before)
        sent += 1
        world.answer(**SPOOLED)
    assert [round(pause) for pause in pauses] == [1, 2, 4, 8, 16, 30, 30]
    assert {message.feedback.feedback_id for _, message in world.wire.sent[3:]} == {"0"}
    world.advance(31)
    for number in "012":
        assert world.wire.sent[-1][1].feedback.feedback_id == number
        world.answer(**LEARNER)
        world.advance(0)
    assert (world.router.counters.unsettled, world.router.counters.resent) == (0, 3)
    world.advance(100)
    assert len(world.wire.sent) == sent + 3


def test_the_queue_of_spooled_facts_is_bounded_and_what_is_given_up_is_counted():
    world = spooling(5, max_kept=3)
    assert (world.router.counters.unsettled, world.router.counters.given_up) == (3, 2)


def test_a_spooled_fact_refused_for_good_is_given_up_and_counted(caplog):
    world = spooling(2)
    world.advance(1.1)
    world.answer(status={"code": 3, "message": "bad"})
    assert (world.router.counters.unsettled, world.router.counters.given_up) == (1, 1)
    assert "given up" in caplog.text
    world.advance(0)
    world.answer(**LEARNER)
    assert world.router.counters.unsettled == 0


def test_a_flush_sends_all_at_once_and_ends_in_time():
    world = spooling(4)
    done = []
    world.resender.flush(2.0, lambda: done.append(world.now))
    assert len(world.wire.sent) == 8
    world.answer(4, **LEARNER)
    world.answer(5, **SPOOLED)
    assert done == []
    world.advance(3)
    assert done == [pytest.approx(1002.0)]
    assert (world.router.counters.resent, world.router.counters.given_up) == (1, 3)


def test_a_new_actor_is_used_at_once_and_those_that_stay_keep_their_streams():
    world = World("a")
    for _ in range(2):
        world.submit()
    world.router.set_addresses(["a", "b"])
    world.submit()
    assert world.targets() == ["a", "a", "b"]
    world.answer(0)
    world.answer(1)
    world.submit()
    assert world.targets()[-1] == "a"
    assert len(world.wire.opened) == 2
    assert (world.wire.finished, world.wire.released) == ([], [])


def test_an_actor_that_goes_finishes_what_is_in_flight_and_gets_no_more():
    world = World("a", "b")
    calls = [world.submit() for _ in range(4)]
    gone = next(stream for stream in world.wire.opened if stream.address.target == "a")
    world.router.set_addresses(["b"])
    for _ in range(4):
        world.submit()
    assert world.targets()[4:] == ["b"] * 4
    assert world.wire.finished == []
    for place, target in enumerate(world.targets()[:4]):
        if target == "a":
            world.answer(place)
    assert sum(call in world.outcomes for call in calls) == 2
    assert (world.wire.finished, world.wire.released) == ([gone], [])
    world.router.broke(gone, None)
    assert world.wire.released == [gone.address]
    assert world.router.counters.retries == 0


def test_an_idle_actor_that_goes_is_let_go_of_when_its_stream_has_ended():
    world = World("a", "b")
    world.submit()
    (stream,) = world.wire.opened
    other = {"a": "b", "b": "a"}[stream.address.target]
    world.answer()
    world.router.set_addresses([stream.address.target])
    assert [address.target for address in world.wire.released] == [other]
    world.router.set_addresses([other])
    assert (world.wire.finished, len(world.wire.released)) == ([stream], 1)
    world.router.broke(stream, None)
    assert len(world.wire.released) == 2


def test_what_a_gone_actor_did_not_answer_is_asked_of_the_others():
    world = World("a")
    silent = world.submit()
    world.router.set_addresses(["b"])
    world.advance(0.31)
    assert world.targets() == ["a", "b"]
    world.answer()
    assert world.outcomes[silent].action == "greet"
    broken = World("a")
    call = broken.submit()
    broken.router.set_addresses(["b"])
    broken.router.broke(broken.wire.opened[0], UNAVAILABLE)
    assert broken.targets() == ["a", "b"]
    assert [address.target for address in broken.wire.released] == ["a"]
    broken.answer()
    assert broken.outcomes[call].action == "greet"


def test_an_unary_call_under_way_keeps_the_connection_of_an_actor_that_is_gone():
    world = World("a", "b")
    world.submit(request=pb.DescribeDomainRequest())
    attempt, _ = world.wire.calls[0]
    world.router.set_addresses([{"a": "b", "b": "a"}[attempt.address.target]])
    assert world.wire.released == []
    world.router.answered(attempt, pb.DomainDescription())
    assert world.wire.released == [attempt.address]


def test_an_actor_that_comes_back_is_met_without_prejudice():
    world = World("a", "b")
    world.submit()
    stream = world.wire.opened[0]
    world.router.broke(stream, UNAVAILABLE)
    world.router.set_addresses([world.targets()[1]])
    world.router.set_addresses(["a", "b"])
    world.submit()
    assert world.targets()[2] == stream.address.target
    assert world.wire.opened[2].address is not stream.address


def test_calls_wait_for_the_first_actor():
    world = World()
    calls = [world.submit() for _ in range(3)]
    world.advance(2)
    assert world.wire.sent == []
    world.router.set_addresses(["a"])
    assert world.targets() == ["a"] * 3
    for place in range(3):
        world.answer(place)
    assert set(world.outcomes) == set(calls)


def test_who_waits_in_vain_for_an_actor_is_told_why_there_is_none():
    world = World()
    world.router.nobody_because(turnwise.ActorUnavailable("the list cannot be had"))
    call = world.submit(timeout_s=2)
    world.advance(1.9)
    assert world.outcomes == {}
    world.advance(0.1)
    assert isinstance(world.outcomes[call], turnwise.ActorUnavailable)
    assert "the list cannot be had" in str(world.outcomes[call])


def test_a_reason_that_waiting_will_not_change_fails_calls_at_once():
    world = World()
    waiting = [world.submit() for _ in range(3)]
    world.router.nobody_because(turnwise.AccessDenied("who are you?"))
    waiting.append(world.submit())
    assert {type(world.outcomes[call]) for call in waiting} == {turnwise.AccessDenied}
    world.router.set_addresses(["a"])
    call = world.submit()
    world.answer()
    assert world.outcomes[call].action == "greet"


def test_trouble_with_an_actor_is_told():
    world = World("a", "b")
    troubles = []
    world.router.on_trouble = lambda: troubles.append(world.now)
    world.submit()
    assert troubles == []
    world.router.broke(world.wire.opened[0], UNAVAILABLE)
    assert troubles == [world.now]
