"""What busy actors send to the learner: Decided facts of about 1 KB, and ratings."""

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import grpc.aio
import numpy as np

from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise_actor.config import UplinkConfig
from turnwise_actor.parts import with_parts
from turnwise_actor.policy import Domain
from turnwise_deploy.local import DeploymentError

BATCH_FACTS = 256
DIALOGUE_TURNS = 10
UPLINK = UplinkConfig()
_APPEND = f"/{training_pb2.DESCRIPTOR.services_by_name['Training'].full_name}/AppendFacts"


class Facts:
    """Endless turns of one dialogue after the other, each with its own ids."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((64, domain.state.features)).astype("<f4")
        self._observations = [dialogue_pb2.Observation(features=row.tobytes()) for row in rows]
        even = np.full(len(domain.action_ids), 1 / len(domain.action_ids), "<f4")
        self._probabilities = even.tobytes()
        self._turns = self._dialogues()

    def turns(self, count: int) -> list[training_pb2.Fact]:
        """The next decisions."""
        return list(itertools.islice(self._turns, count))

    def rated_turns(self, count: int) -> list[training_pb2.Fact]:
        """The next decisions, a reward after each."""
        return [fact for turn in self.turns(count) for fact in (turn, _rating(turn))]

    def _dialogues(self) -> Iterator[training_pb2.Fact]:
        while True:
            dialogue, parent = uuid.uuid4().hex, ""
            for index in range(DIALOGUE_TURNS):
                decision = os.urandom(16).hex()
                yield self._decided(dialogue, parent, decision, index)
                parent = decision

    def _decided(self, dialogue: str, parent: str, decision: str, index: int) -> training_pb2.Fact:
        chance = decision.encode()[-1]
        body = training_pb2.Decided(
            decision_id=decision,
            parent_id=parent,
            index=index,
            observation=self._observations[chance % len(self._observations)],
            action=self._domain.action_ids[chance % len(self._domain.action_ids)],
            probabilities=self._probabilities,
            policy_version=dialogue_pb2.PolicyVersion(generation=1, number=1),
            domain_fingerprint=self._domain.fingerprint,
            mode=dialogue_pb2.TEACH,
            recorded=True,
        )
        return training_pb2.Fact(key=f"d:{decision}", dialogue_id=dialogue, time_ms=_now_ms(), decided=body)


def _rating(turn: training_pb2.Fact) -> training_pb2.Fact:
    name, time_ms = uuid.uuid4().hex, _now_ms()
    body = training_pb2.Feedback(
        feedback_id=name, decision_id=turn.decided.decision_id, teacher="bench", revision=time_ms, reward=1.0
    )
    return training_pb2.Fact(key=f"f:{name}", dialogue_id=turn.dialogue_id, time_ms=time_ms, feedback=body)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def batches(facts: Sequence[training_pb2.Fact], size: int = BATCH_FACTS) -> list[bytes]:
    """Messages that lack their sequence number alone."""
    bodies = [fact.SerializeToString() for fact in facts]
    return [
        with_parts(b"", training_pb2.FactBatch.FACTS_FIELD_NUMBER, bodies[i : i + size])
        for i in range(0, len(bodies), size)
    ]


class FactStream:
    """One AppendFacts stream, with as many batches in flight as an actor's uplink has.

    One `deliver` at a time.
    """

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._call = channel.stream_stream(_APPEND, None, training_pb2.Ack.FromString)()
        self._report = training_pb2.ActorReport(address=address, incarnation=uuid.uuid4().hex)
        self._sequence = 0

    async def open(self) -> None:
        """An empty batch first, as the uplink has it: it says who this is."""
        await self.deliver([training_pb2.FactBatch(report=self._report).SerializeToString()])

    async def deliver(
        self,
        bodies: Sequence[bytes],
        every_s: float = 0.0,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Returns when all are acknowledged.

        Args:
            bodies: From `batches`.
            every_s: Time from one to the next; one that is late goes at once.
            enough: The rest is not sent any more.

        Raises:
            DeploymentError: The learner refused a fact, or ended the stream.
        """
        room = asyncio.Semaphore(UPLINK.max_batches_in_flight)
        sent: asyncio.Queue[int] = asyncio.Queue()

        async def send() -> None:
            began = time.monotonic()
            for number, body in enumerate(bodies):
                if every_s:
                    await asyncio.sleep(max(0.0, began + number * every_s - time.monotonic()))
                if enough():
                    break
                await room.acquire()
                self._sequence += 1
                sent.put_nowait(self._sequence)
                head = training_pb2.FactBatch(sequence=self._sequence).SerializeToString()
                await self._call.write(head + body)
            sent.put_nowait(0)

        async def hear() -> None:
            while sequence := await sent.get():
                ack = await self._call.read()
                if not isinstance(ack, training_pb2.Ack) or ack.refused or ack.sequence != sequence:
                    raise DeploymentError(f"the learner answered batch {sequence} with {ack}")
                room.release()

        await asyncio.gather(send(), hear())
