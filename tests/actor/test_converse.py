from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest

from turnwise.v1 import dialogue_pb2 as pb
from turnwise_actor.config import ActorConfig, StreamConfig, UplinkConfig
from turnwise_actor.conversation import Acted, Conversation, Done
from turnwise_actor.requests import PlainAct

from .conftest import ActorFactory, eventually
from .frontend import Frontend, fresh, read_status, seen
from .learner_end import LearnerEnd


class Stream:
    """One Converse stream."""

    def __init__(self, bot: Frontend) -> None:
        self._call = bot.stub.Converse()

    async def send(self, correlation_id: int, timeout_ms: int = 0, **request: Any) -> None:
        await self._call.write(
            pb.ConverseRequest(correlation_id=correlation_id, timeout_ms=timeout_ms, **request)
        )

    async def write(self, message: pb.ConverseRequest) -> None:
        await self._call.write(message)

    async def receive(self) -> Any:
        """The next reply; a false value at the end of the stream."""
        return await asyncio.wait_for(self._call.read(), 5)

    async def receive_all(self, count: int) -> list[pb.ConverseReply]:
        """That many replies, of however many messages; the first message's own first."""
        replies = list[pb.ConverseReply]()
        while len(replies) < count:
            reply = await self.receive()
            replies += [reply, *reply.also]
        return replies

    async def ask(self, **request: Any) -> pb.ConverseReply:
        await self.send(77, **request)
        return await self.receive()

    async def close(self) -> None:
        await self._call.done_writing()


LARGE = 16_000
MORE_THAN_BUFFERS_HOLD = 10_000
"""Requests of that many bytes: some hundreds are under way, and gRPC's windows hold some megabytes."""


def answering() -> int:
    """Requests of streams under way in this process."""
    coroutines = (task.get_coro() for task in asyncio.all_tasks())
    return sum(getattr(each, "__qualname__", "") == "Conversation._reply" for each in coroutines)


async def standstill(count: Callable[[], int]) -> None:
    """Returns when a count has stopped rising."""
    before = -1
    while (now := count()) != before:
        before = now
        await asyncio.sleep(0.5)


def turn_of(token: bytes, **fields: Any) -> pb.ActRequest:
    return pb.ActRequest(**{"token": token, "observation": seen(), "request_id": fresh("request"), **fields})


async def test_a_whole_dialogue_on_a_stream(new_actor: ActorFactory, learner: LearnerEnd) -> None:
    _, bot = await new_actor()
    stream = Stream(bot)
    started = await stream.ask(start=pb.StartDialogueRequest(dialogue_id="d1", user="ann"))
    assert started.correlation_id == 77
    turn = (await stream.ask(act=turn_of(started.started.token))).turn
    given = pb.FeedbackRequest(
        dialogue_id="d1", decision_id=turn.decision_id, token=turn.token, feedback_id="f1", reward=1.0
    )
    assert (await stream.ask(feedback=given)).receipt.settled == pb.Receipt.LEARNER
    ended = pb.EndRequest(token=turn.token, outcome="success", request_id="e1")
    assert (await stream.ask(end=ended)).receipt.settled == pb.Receipt.LEARNER
    assert set(learner.facts) == {"s:d1", f"d:{turn.decision_id}", "f:f1", f"e:d1:{turn.decision_id}"}
    await stream.close()
    assert not await stream.receive()


async def test_a_stream_and_a_call_give_the_same_turn(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    request = turn_of((await bot.start()).token)
    over_stream, called = (await Stream(bot).ask(act=request)).turn, await bot.stub.Act(request)
    over_stream.token = called.token
    assert over_stream == called


async def test_many_dialogues_on_one_stream(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    stream = Stream(bot)
    tokens = {number: (await bot.start(f"d{number}")).token for number in range(1, 101)}
    for number, token in tokens.items():
        await stream.send(number, act=turn_of(token))
    replies = [await stream.receive() for _ in tokens]
    assert {reply.correlation_id: reply.turn.dialogue_id for reply in replies} == {
        number: f"d{number}" for number in tokens
    }


async def test_requests_of_one_message_are_answered_in_one_message(new_actor: ActorFactory) -> None:
    actor, bot = await new_actor()
    stream = Stream(bot)
    tokens = {number: (await bot.start(f"d{number}")).token for number in range(1, 41)}
    first, *others = (
        pb.ConverseRequest(correlation_id=number, act=turn_of(token)) for number, token in tokens.items()
    )
    others[10].act.allowed.append("nope")
    others[20].ClearField("act")
    first.also.extend(others)
    before = actor._dialogues.counters.turns
    await stream.write(first)
    replies = await stream.receive_all(40)
    assert actor._dialogues.counters.turns == before + 38
    assert len(replies[0].also) > 30
    told = {each.correlation_id: each for each in replies}
    wrong = {number: read_status(told[number].status) for number in told if told[number].HasField("status")}
    assert {number: list(each.violations) for number, each in wrong.items()} == {
        12: ["allowed"],
        22: ["request"],
    }
    for number in told.keys() - wrong.keys():
        assert told[number].turn.dialogue_id == f"d{number}"


async def test_an_answer_does_not_depend_on_who_else_asks_at_the_moment(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    stream = Stream(bot)
    token = (await bot.start("d")).token
    request = turn_of(token)
    alone = (await stream.ask(act=request)).turn
    message = pb.ConverseRequest(correlation_id=1, act=turn_of(token, allowed=["greet", "handoff"]))
    message.also.extend(
        pb.ConverseRequest(
            correlation_id=number, act=turn_of(token, observation=pb.Observation(text=f"x {number}"))
        )
        for number in range(2, 20)
    )
    message.also.add(correlation_id=20, act=request)
    await stream.write(message)
    replies = await stream.receive_all(20)
    (together,) = (reply.turn for reply in replies if reply.correlation_id == 20)
    together.token = alone.token
    assert together == alone


async def test_a_client_that_does_not_coalesce_gets_a_message_a_reply(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    stream = Stream(bot)
    token = (await bot.start()).token
    for number in range(50):
        await stream.send(number, act=turn_of(token))
    replies = [await stream.receive() for _ in range(50)]
    assert not any(reply.also for reply in replies)


async def test_more_in_one_message_than_may_be_in_flight_is_refused_as_a_whole(
    new_actor: ActorFactory,
) -> None:
    _, bot = await new_actor()
    stream = Stream(bot)
    token = (await bot.start()).token
    message = pb.ConverseRequest(correlation_id=5, act=turn_of(token))
    message.also.extend(pb.ConverseRequest(correlation_id=6) for _ in range(256))
    await stream.write(message)
    reply = await stream.receive()
    told = read_status(reply.status)
    assert (reply.correlation_id, told.code, list(told.violations)) == (5, "INVALID_ARGUMENT", ["also"])
    del message.also[1:]
    message.also[0].also.add()
    await stream.write(message)
    reply = await stream.receive()
    replies = {each.correlation_id: each for each in (reply, *reply.also)}
    if len(replies) == 1:
        reply = await stream.receive()
        replies[reply.correlation_id] = reply
    assert list(read_status(replies[6].status).violations) == ["also.also"]
    assert replies[5].turn.recorded


async def test_bad_requests_do_not_end_the_stream(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    stream = Stream(bot)
    token = (await bot.start()).token
    told = read_status((await stream.ask(act=turn_of(token, allowed=["nope"]))).status)
    assert (told.code, list(told.violations)) == ("INVALID_ARGUMENT", ["allowed"])
    told = read_status((await stream.ask(act=turn_of(b"\x01forged"))).status)
    assert (told.code, told.reason) == ("PERMISSION_DENIED", "TOKEN_INVALID")
    told = read_status((await stream.ask()).status)
    assert (told.code, list(told.violations)) == ("INVALID_ARGUMENT", ["request"])
    assert (await stream.ask(act=turn_of(token))).turn.recorded


async def test_bytes_that_are_no_message_are_refused_as_nobodys_and_the_stream_goes_on(
    new_actor: ActorFactory, caplog: pytest.LogCaptureFixture
) -> None:
    _, bot = await new_actor()
    token = (await bot.start()).token
    good = pb.ConverseRequest(correlation_id=7, act=turn_of(token)).SerializeToString()
    stream: Any = bot.channel.stream_stream(
        "/turnwise.v1.Dialogue/Converse", None, pb.ConverseReply.FromString
    )(None)
    for content in (good, b"\xff", good[:-1], good):
        await stream.write(content)
    await stream.done_writing()
    replies = [reply async for reply in stream]
    assert sorted(reply.correlation_id for reply in replies) == [0, 0, 7, 7]
    told = [read_status(reply.status) for reply in replies if reply.HasField("status")]
    assert [(each.code, list(each.violations)) for each in told] == [("INVALID_ARGUMENT", ["request"])] * 2
    assert [reply.turn.recorded for reply in replies if reply.correlation_id] == [True, True]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_nonsense_whose_refusals_are_not_read_is_not_read_either(new_actor: ActorFactory) -> None:
    actor, _ = await new_actor()
    small_window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    async with grpc.aio.insecure_channel(actor.address, small_window) as channel:
        deaf = channel.stream_stream("/turnwise.v1.Dialogue/Converse", None, pb.ConverseReply.FromString)(
            None
        )
        sent = 0

        async def shout() -> None:
            nonlocal sent
            while sent < 8 * MORE_THAN_BUFFERS_HOLD:
                await deaf.write(b"\xff" * 1000)
                sent += 1

        shouting = asyncio.create_task(shout())
        await standstill(lambda: sent)
        assert not shouting.done(), "everything that was sent was taken in"
        shouting.cancel()
        await asyncio.gather(shouting, return_exceptions=True)
        deaf.cancel()


async def test_replies_come_in_order_of_completion(new_actor: ActorFactory, learner: LearnerEnd) -> None:
    actor, bot = await new_actor()
    stream = Stream(bot)
    turn = await bot.act((await bot.start("d1")).token)
    await eventually(lambda: actor.uplink.connected)
    learner.answering.clear()
    await stream.send(1, feedback=pb.FeedbackRequest(dialogue_id="d1", feedback_id="f1", reward=1.0))
    await stream.send(2, act=turn_of(turn.token))
    assert [(await stream.receive()).correlation_id for _ in range(2)] == [2, 1]


async def test_a_request_has_its_own_deadline(new_actor: ActorFactory, learner: LearnerEnd) -> None:
    actor, bot = await new_actor()
    stream = Stream(bot)
    await eventually(lambda: actor.uplink.connected)
    learner.answering.clear()
    given = pb.FeedbackRequest(dialogue_id="d1", feedback_id="f1", reward=1.0)
    told = read_status((await stream.ask(timeout_ms=20, feedback=given)).status)
    assert told.code == "DEADLINE_EXCEEDED"
    assert "20 ms" in told.message
    learner.answering.set()
    await eventually(lambda: "f:f1" in learner.facts)


async def test_beyond_256_in_flight_a_request_is_turned_away(
    new_actor: ActorFactory, learner: LearnerEnd, config: ActorConfig
) -> None:
    actor, bot = await new_actor(uplink=UplinkConfig(settle_wait_ms=3000, report_interval_s=0.1))
    stream = Stream(bot)
    await eventually(lambda: actor.uplink.connected)
    token = (await bot.start()).token
    learner.answering.clear()
    for number in range(300):
        given = pb.FeedbackRequest(dialogue_id="d1", feedback_id=f"f{number}", reward=1.0)
        await stream.send(number, feedback=given)
    turned_away = [await stream.receive() for _ in range(44)]
    assert {read_status(reply.status).code for reply in turned_away} == {"RESOURCE_EXHAUSTED"}
    assert {reply.correlation_id for reply in turned_away} == set(range(256, 300))
    message = pb.ConverseRequest(correlation_id=300, act=turn_of(token))
    message.also.add(correlation_id=301, act=turn_of(token))
    await stream.write(message)
    reply = await stream.receive()
    assert [each.correlation_id for each in (reply, *reply.also)] == [300, 301]
    assert {read_status(each.status).reason for each in (reply, *reply.also)} == {"TOO_MANY_IN_FLIGHT"}
    learner.answering.set()
    answered = await stream.receive_all(256)
    assert {reply.WhichOneof("reply") for reply in answered} == {"receipt"}


async def test_a_client_that_does_not_read_is_not_read_from_and_delays_nobody(
    new_actor: ActorFactory,
) -> None:
    actor, bot = await new_actor()
    small_window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    async with grpc.aio.insecure_channel(actor.address, small_window) as channel:
        deaf, beside_it, sent = Stream(Frontend(channel)), Stream(Frontend(channel)), 0
        enough = asyncio.Event()

        async def shout() -> None:
            nonlocal sent
            while sent < MORE_THAN_BUFFERS_HOLD and not enough.is_set():
                await deaf.send(sent, act=turn_of(bytes(LARGE)))
                sent += 1

        shouting = asyncio.create_task(shout())
        await standstill(lambda: sent)
        assert not shouting.done(), "everything that was sent was taken in"
        assert answering() <= 256
        for stream in (beside_it, Stream(bot)):
            begun = await stream.ask(start=pb.StartDialogueRequest(dialogue_id=fresh("dialogue")))
            token = begun.started.token
            for index in range(20):
                turn = (await stream.ask(act=turn_of(token))).turn
                assert turn.index == index
                token = turn.token
        assert not shouting.done()
        enough.set()
        replies = [(await deaf.receive()).correlation_id for _ in range(sent)]
        await shouting
        replies += [(await deaf.receive()).correlation_id for _ in range(sent - len(replies))]
        assert sorted(replies) == list(range(sent)), "what was taken in is answered, each once"


async def test_an_old_stream_is_asked_to_move_and_ends_when_it_is_quiet(
    new_actor: ActorFactory, config: ActorConfig
) -> None:
    life = replace(config.stream, life_s=0.3, life_jitter_s=0.1)
    actor, bot = await new_actor(stream=life)
    stream = Stream(bot)
    token = (await stream.ask(start=pb.StartDialogueRequest(dialogue_id="d1"))).started.token
    asked = await stream.receive()
    assert (asked.WhichOneof("reply"), asked.correlation_id) == ("draining", 0)
    assert (await stream.ask(act=turn_of(token))).turn.recorded, "what was on its way is answered"
    assert not await stream.receive()
    await eventually(lambda: actor._servicer.streams == 0)


async def test_a_stream_whose_client_never_reads_ends_at_its_age_too(
    new_actor: ActorFactory, config: ActorConfig
) -> None:
    life = replace(config.stream, life_s=0.5, life_jitter_s=0.0, move_s=0.3, quiet_s=0.1)
    actor, _ = await new_actor(stream=life)
    small_window = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    async with grpc.aio.insecure_channel(actor.address, small_window) as channel:
        deaf, sent = Stream(Frontend(channel)), 0

        async def shout() -> None:
            nonlocal sent
            while sent < MORE_THAN_BUFFERS_HOLD:
                await deaf.send(sent, act=turn_of(bytes(LARGE)))
                sent += 1

        shouting = asyncio.create_task(shout())
        await eventually(lambda: actor._servicer.streams == 1)
        await eventually(lambda: actor._servicer.streams == 0)
        shouting.cancel()
        await asyncio.gather(shouting, return_exceptions=True)


async def test_a_draining_actor_moves_its_streams_and_refuses_new_calls(
    new_actor: ActorFactory, learner: LearnerEnd
) -> None:
    actor, bot = await new_actor()
    streams = [Stream(bot) for _ in range(3)]
    turn = await bot.act((await bot.start("d1")).token)
    for stream in streams:
        await stream.ask(act=turn_of(turn.token))
    await eventually(lambda: actor.uplink.connected)
    learner.answering.clear()
    given = pb.FeedbackRequest(dialogue_id="d1", feedback_id="f1", reward=1.0)
    await streams[0].send(1, feedback=given)
    stopping = asyncio.create_task(actor.stop())
    for stream in streams:
        assert (await stream.receive()).WhichOneof("reply") == "draining"
    learner.answering.set()
    assert (await streams[0].receive()).receipt.settled == pb.Receipt.LEARNER
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await bot.act(turn.token)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert await stopping is True
    assert learner.reports[-1].draining


async def test_a_broken_connection_loses_no_fact(new_actor: ActorFactory, learner: LearnerEnd) -> None:
    actor, _ = await new_actor()
    await eventually(lambda: actor.uplink.connected)
    learner.answering.clear()
    channel = grpc.aio.insecure_channel(actor.address)
    stream = Stream(Frontend(channel))
    await stream.send(1, feedback=pb.FeedbackRequest(dialogue_id="d1", feedback_id="f1", reward=1.0))
    await eventually(lambda: actor.uplink.pending_facts)
    await channel.close(None)
    learner.answering.set()
    await eventually(lambda: "f:f1" in learner.facts)
    await eventually(lambda: actor._servicer.streams == 0)


class DeafWire:
    """A stream whose client says nothing more, and takes every reply."""

    def __init__(self, ended: bool = False) -> None:
        self.sent_replies: list[bytes | list[bytes]] = []
        self._ended = asyncio.get_running_loop().create_future()
        if ended:
            self._ended.set_result(None)

    def listen(self, take: Callable[[list[bytes]], None]) -> asyncio.Future[None]:
        return self._ended

    def stop_listening(self) -> None: ...

    def send(self, replies: Sequence[bytes | list[bytes]]) -> None:
        self.sent_replies += replies

    async def sent(self) -> None: ...


async def test_what_turns_out_to_need_the_disk_after_its_stream_has_broken_is_not_begun() -> None:
    begun: list[str] = []
    told: list[Callable[[Any], None]] = []

    async def by_disk() -> bytes:
        begun.append("by disk")
        return b""

    def act(acts: Sequence[PlainAct], acted: Acted) -> None:
        told.append(lambda outcome: acted(acts, [outcome]))

    def answer(request: pb.ConverseRequest, done: Done) -> None:
        told.append(done)

    wire = DeafWire()
    conversation = Conversation(wire, act, answer, StreamConfig())
    running = asyncio.create_task(conversation.run(60.0, asyncio.Event()))
    act_alone = pb.ConverseRequest(act=pb.ActRequest()).SerializeToString()
    number_alone = pb.ConverseRequest(correlation_id=1).SerializeToString()
    # Only the first is plain: protobuf would not have written the other's fields in this order.
    conversation.take([number_alone + act_alone])
    conversation.take([act_alone + number_alone])
    assert len(told) == 2
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait((running,))
    for tell in told:
        tell(by_disk)
    await asyncio.sleep(0)
    assert not begun
    assert not wire.sent_replies


async def test_what_turns_out_to_need_the_disk_after_the_client_has_ended_its_side_is_still_answered() -> (
    None
):
    async def by_disk() -> bytes:
        await asyncio.sleep(0.05)
        return b"a reply"

    def act(acts: Sequence[PlainAct], acted: Acted) -> None:
        asyncio.get_running_loop().call_later(0.01, acted, acts, [by_disk])

    def answer(request: pb.ConverseRequest, done: Done) -> None:
        act([], lambda acts, outcomes: done(outcomes[0]))

    wire = DeafWire(ended=True)
    conversation = Conversation(wire, act, answer, StreamConfig())
    conversation.take([pb.ConverseRequest(correlation_id=1, act=pb.ActRequest()).SerializeToString()])
    await asyncio.wait_for(conversation.run(60.0, asyncio.Event()), 5)
    assert wire.sent_replies == [b"a reply"]


async def test_a_request_over_the_size_limit_ends_its_stream(new_actor: ActorFactory) -> None:
    _, bot = await new_actor()
    stream = Stream(bot)
    await stream.send(1, act=pb.ActRequest(token=bytes(4 * 1024 * 1024)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.receive()
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
