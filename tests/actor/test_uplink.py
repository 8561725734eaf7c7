from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from turnwise.v1 import training_pb2
from turnwise_actor.access.client_access import ClientAccess, Link
from turnwise_actor.config import ActorConfig, UplinkConfig
from turnwise_actor.facts import PackedFact, pack
from turnwise_actor.spool import Spool
from turnwise_actor.uplink import Uplink

from .conftest import ActorFactory, eventually
from .learner_end import LearnerEnd

FAST = UplinkConfig(
    settle_wait_ms=100, reconnect_min_s=0.02, reconnect_max_s=0.1, ack_timeout_s=0.5, report_interval_s=0.1
)


class Rig:
    """An uplink with nothing else around it."""

    def __init__(self, folder: Path, learner: LearnerEnd, config: UplinkConfig) -> None:
        self.link = Link(
            learner.address,
            ClientAccess(),
            [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 50)],
        )
        self.spool = Spool(folder, "a", max_bytes=1_000_000, segment_bytes=2_000)
        self.uplink = Uplink(self.link, self.spool, config, lambda: training_pb2.ActorReport(address="a"), 7)
        self.uplink.start()

    async def close(self) -> bool:
        clean = await self.uplink.close(1.0)
        await self.spool.close()
        await self.link.close()
        return clean


def facts(*keys: object) -> list[PackedFact]:
    begun = training_pb2.Started(user="u" * 50)
    return [pack(training_pb2.Fact(key=str(key), dialogue_id="d", started=begun)) for key in keys]


async def test_what_comes_in_one_tick_goes_in_one_batch(tmp_path: Path, learner: LearnerEnd) -> None:
    rig = Rig(tmp_path, learner, FAST)
    await eventually(lambda: rig.uplink.connected)
    for number in range(100):
        rig.uplink.add(facts(number))
    await eventually(lambda: len(learner.facts) == 100)
    assert len(learner.batches) == 1
    assert await rig.close()


async def test_the_newest_settled_facts_are_known_and_the_oldest_forgotten(
    tmp_path: Path, learner: LearnerEnd
) -> None:
    rig = Rig(tmp_path, learner, replace(FAST, max_settled_keys=20))
    await eventually(lambda: rig.uplink.connected)
    for number in range(45):
        await rig.uplink.settle(facts(number))
    assert rig.uplink.add(facts(*range(35, 45))) == []
    forgotten = facts(*range(20))
    assert [fact.key for fact in rig.uplink.add(forgotten)] == [fact.key for fact in forgotten]
    await eventually(lambda: len(learner.deliveries) == 45 + 20)  # again: harmless, as facts are keyed
    assert await rig.close()


async def test_a_broken_stream_is_begun_anew_and_nothing_is_lost(tmp_path: Path, learner: LearnerEnd) -> None:
    rig = Rig(tmp_path, learner, FAST)
    sent = 0
    for _ in range(3):
        await eventually(lambda: rig.uplink.connected)
        for _ in range(50):
            rig.uplink.add(facts(sent))
            sent += 1
            await asyncio.sleep(0)
        await learner.stop()
        rig.uplink.add(facts(sent))
        sent += 1
        await eventually(lambda: not rig.uplink.connected)
        await learner.start()
    await eventually(lambda: len(learner.facts) == sent)
    await eventually(lambda: rig.uplink.pending_facts == 0)
    assert await rig.close()


async def test_beyond_its_bound_memory_goes_to_the_disk_oldest_first_and_comes_back_from_it(
    tmp_path: Path, learner: LearnerEnd
) -> None:
    await learner.stop()
    rig = Rig(tmp_path, learner, replace(FAST, max_pending_facts=100, max_batch_facts=20))
    for number in range(0, 500, 50):
        rig.uplink.add(facts(*range(number, number + 50)))
        await eventually(lambda: rig.uplink.pending_facts <= 100)
    segment = rig.spool.oldest()
    assert segment is not None
    assert (await rig.spool.read(segment))[0].key == "0"
    await learner.start()
    await eventually(lambda: len(learner.facts) == 500)
    await eventually(lambda: rig.spool.size_bytes == 0)
    assert await rig.close()
    assert set(Counter(learner.deliveries).values()) == {1}


async def test_facts_are_numbered_by_the_first_who_takes_them_up(tmp_path: Path, learner: LearnerEnd) -> None:
    rig = Rig(tmp_path, learner, FAST)
    rig.uplink.add([*facts("a", "b"), facts("of another")[0].numbered(9, 40)])
    again, _ = rig.uplink.add(facts("b", "c"))
    assert (again.incarnation, again.sequence) == (7, 2)
    await eventually(lambda: rig.uplink.pending_facts == 0)
    given = {key: (fact.incarnation, fact.sequence) for key, fact in learner.facts.items()}
    assert given == {"a": (7, 1), "b": (7, 2), "of another": (9, 40), "c": (7, 3)}
    assert await rig.close()


async def test_what_is_not_acknowledged_is_not_said_to_be_journaled(
    tmp_path: Path, learner: LearnerEnd
) -> None:
    rig = Rig(tmp_path, learner, FAST)
    await eventually(lambda: rig.uplink.connected)
    await rig.uplink.settle(facts("a", "b"))
    assert rig.uplink.journaled_through == 2
    await learner.stop()
    await eventually(lambda: not rig.uplink.connected)
    rig.uplink.add(facts("c"))
    assert rig.uplink.journaled_through == 2
    rig.uplink.add(facts("d"))
    await rig.uplink.spool(facts("c"))
    rig.uplink._pending.pop("c")  # as memory that runs over does it
    assert rig.uplink.journaled_through == 2
    await learner.start()
    await eventually(lambda: {"c", "d"} <= set(learner.facts))
    await eventually(lambda: rig.uplink.journaled_through == 4)
    assert await rig.close()


async def test_spooled_facts_wait_for_the_learners_return(tmp_path: Path, learner: LearnerEnd) -> None:
    await learner.stop()
    rig = Rig(tmp_path, learner, FAST)
    assert await rig.uplink.settle(facts("f")) is None
    assert [fact.key for fact in rig.uplink.add(facts("f", "g"))] == ["g"]
    assert rig.spool.size_bytes > 0
    await learner.start()
    await eventually(lambda: "f" in learner.facts)
    await eventually(lambda: rig.spool.size_bytes == 0)
    assert await rig.close()


async def test_a_fact_has_the_same_number_in_the_spool_and_on_its_way(
    tmp_path: Path, learner: LearnerEnd
) -> None:
    await learner.stop()
    rig = Rig(tmp_path, learner, FAST)
    rig.uplink.add(facts("a"))
    assert await rig.uplink.settle(facts("a", "b")) is None
    segment = rig.spool.oldest()
    assert segment is not None
    spooled = await rig.spool.read(segment)
    assert [(fact.key, fact.incarnation, fact.sequence) for fact in spooled] == [("a", 7, 1), ("b", 7, 2)]
    await rig.close()


async def test_an_older_epoch_settles_nothing(
    tmp_path: Path, learner: LearnerEnd, caplog: pytest.LogCaptureFixture
) -> None:
    await learner.stop()
    await learner.start(epoch=9)
    rig = Rig(tmp_path, learner, FAST)
    await eventually(lambda: rig.uplink.connected)
    assert await rig.uplink.settle(facts("f1"))
    await learner.stop()
    await eventually(lambda: not rig.uplink.connected)
    with caplog.at_level(logging.WARNING):
        await learner.start(epoch=8)
        assert await rig.uplink.settle(facts("f2")) is None
        await asyncio.sleep(0.3)
    assert rig.spool.size_bytes > 0
    await learner.stop()
    await learner.start(epoch=10)
    await eventually(lambda: rig.spool.size_bytes == 0)
    assert await rig.close()
    assert "epoch went back from 9 to 8" in caplog.text


async def test_what_is_left_at_the_end_is_spooled_and_told(tmp_path: Path, learner: LearnerEnd) -> None:
    await learner.stop()
    rig = Rig(tmp_path, learner, FAST)
    rig.uplink.add(facts("f1", "f2"))
    assert not await rig.close()
    heir = Spool(tmp_path, "b", max_bytes=1_000_000, segment_bytes=1_000)
    await heir.adopt()
    segment = heir.oldest()
    assert segment is not None
    assert [fact.key for fact in await heir.read(segment)] == ["f1", "f2"]
    await heir.close()


async def test_reports_come_at_intervals_and_tell_of_a_new_policy_at_once(
    new_actor: ActorFactory, learner: LearnerEnd, config: ActorConfig
) -> None:
    actor, bot = await new_actor()
    await bot.act((await bot.start()).token)
    report = await eventually(lambda: [each for each in learner.reports if each.turns == 1][-1:])
    assert report[0].address == actor.address
    assert report[0].policy_version.generation == 1
    count = len(learner.reports)
    await eventually(lambda: len(learner.reports) > count + 2)


async def test_an_heir_sends_what_a_dead_actor_had_spooled(
    new_actor: ActorFactory, learner: LearnerEnd, config: ActorConfig
) -> None:
    dead = Spool(config.spool_folder, "127.0.0.1_1", max_bytes=1_000_000, segment_bytes=1_000)
    await dead.append(facts("f1", "f2"))
    actor, _ = await new_actor()
    await eventually(lambda: actor.uplink.connected)
    assert "f1" not in learner.facts
    os.close(dead._lock)
    await eventually(lambda: set(learner.facts) == {"f1", "f2"})
    await eventually(lambda: actor.spool.size_bytes == 0)
    assert not dead.folder.exists()


async def test_facts_are_waited_for_without_the_disk(tmp_path: Path, learner: LearnerEnd) -> None:
    rig = Rig(tmp_path, learner, replace(FAST, max_pending_facts=3))
    uplink = rig.uplink
    await eventually(lambda: uplink.connected)
    some, others = facts("a", "b", "c"), facts("b", "d")
    learner.refused["d"] = "malformed"
    learner.answering.clear()
    uplink.add([*some, *others])
    waits = [asyncio.create_task(uplink.until_settled(each, 5_000)) for each in (some, others, others)]
    given_up = asyncio.create_task(uplink.until_settled(some, 20))
    gone = asyncio.create_task(uplink.until_settled(some, 5_000))
    assert not await given_up
    gone.cancel()
    assert not any(wait.done() for wait in waits)
    learner.answering.set()
    assert await asyncio.gather(*waits) == [True, True, True]
    assert await uplink.until_settled([*some, *others], 5_000)  # at once
    assert not await uplink.until_settled(facts("unheard of"), 5_000)
    await learner.stop()
    await eventually(lambda: not uplink.connected)
    uplink.add(facts("e"))
    assert not await uplink.until_settled(facts("e"), 20)
    assert not uplink._watched
    assert rig.spool.size_bytes == 0
    await learner.start()
    assert await rig.close()
