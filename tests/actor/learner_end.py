"""The learner's end of the wire, on a real server: facts go to a dict, policies come from the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from turnwise.v1 import training_pb2
from turnwise.v1.training_pb2_grpc import TrainingServicer, add_TrainingServicer_to_server
from turnwise_actor.policy import Policy, PolicyVersion
from turnwise_actor.weights import version_message

CHUNK_BYTES = 16 * 1024


class LearnerEnd(TrainingServicer):
    """A journal in memory. `facts` survives `stop` and `start`, as a journal does."""

    def __init__(self) -> None:
        self.facts: dict[str, training_pb2.Fact] = {}
        self.deliveries: list[str] = []
        self.batches: list[list[str]] = []
        self.reports: list[training_pb2.ActorReport] = []
        self.refused: dict[str, str] = {}
        self.epoch = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.port = 0
        self.folder: Path | None = None
        """Holds the policies as files, for actors that want to map them."""
        self.elsewhere = False
        """The files are not the ones that an actor finds at their paths."""
        self.told_of_files = False
        """What the newest subscriber was given."""
        self._policy: Policy | None = None
        self._published = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, *, epoch: int | None = None) -> None:
        """Listens on the port it had before, with the next epoch."""
        self.epoch = self.epoch + 1 if epoch is None else epoch
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_TrainingServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Breaks every stream."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def publish(self, policy: Policy) -> None:
        async with self._published:
            self._policy = policy
            self._published.notify_all()

    def of_kind(self, kind: str) -> list[training_pb2.Fact]:
        return [fact for fact in self.facts.values() if fact.WhichOneof("kind") == kind]

    async def AppendFacts(
        self, request_iterator: AsyncIterator[training_pb2.FactBatch], context: Any
    ) -> AsyncIterator[training_pb2.Ack]:
        async for batch in request_iterator:
            if batch.HasField("report"):
                self.reports.append(batch.report)
            await self.answering.wait()
            if batch.facts:
                self.batches.append([fact.key for fact in batch.facts])
            ack = training_pb2.Ack(sequence=batch.sequence, epoch=self.epoch)
            for fact in batch.facts:
                self.deliveries.append(fact.key)
                if fact.key in self.refused:
                    ack.refused.add(key=fact.key, reason=self.refused[fact.key])
                else:
                    self.facts.setdefault(fact.key, fact)
                    ack.cursor = list(self.facts).index(fact.key) + 1
            yield ack

    async def WatchPolicy(
        self, request: training_pb2.WatchPolicyRequest, context: Any
    ) -> AsyncIterator[training_pb2.PolicyChunk]:
        have = None
        if request.HasField("have"):
            have = PolicyVersion(request.have.generation, request.have.number)
        while True:
            async with self._published:
                while self._policy is None or self._policy.version == have:
                    await self._published.wait()
                policy = self._policy
            have = policy.version
            self.told_of_files = request.map_file and self.folder is not None
            if request.map_file and self.folder is not None:
                notice = file_of(policy, self.folder)
                notice.file.inode += self.elsewhere
                yield notice
                continue
            for chunk in chunks_of(policy):
                yield chunk


def file_of(policy: Policy, folder: Path) -> training_pb2.PolicyChunk:
    """Writes the file and tells of it."""
    path = folder / f"{policy.version}.safetensors"
    path.write_bytes(policy.to_bytes())
    found = path.stat()
    return training_pb2.PolicyChunk(
        version=version_message(policy.version),
        learned_through=policy.learned_through,
        total=found.st_size,
        file=training_pb2.PolicyFile(
            path=str(path), device=found.st_dev, inode=found.st_ino, modified_ns=found.st_mtime_ns
        ),
    )


def chunks_of(policy: Policy) -> list[training_pb2.PolicyChunk]:
    data = policy.to_bytes()
    return [
        training_pb2.PolicyChunk(
            version=version_message(policy.version),
            learned_through=policy.learned_through,
            offset=offset,
            total=len(data),
            data=data[offset : offset + CHUNK_BYTES],
        )
        for offset in range(0, len(data), CHUNK_BYTES)
    ]
