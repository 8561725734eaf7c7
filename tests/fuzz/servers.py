"""A real learner's service and a real actor in this process, and requests that they take."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from tests.fuzz.parsers import KEY_FILE
from turnwise.v1 import dialogue_pb2, training_pb2
from turnwise.v1.dialogue_pb2_grpc import DialogueStub
from turnwise.v1.training_pb2_grpc import TrainerStub
from turnwise_actor.access.client_access import LOCAL_TOKEN, ClientAccess
from turnwise_actor.config import ActorConfig, UplinkConfig
from turnwise_actor.policy import Domain, initial_policy
from turnwise_actor.server import ActorServer
from turnwise_learner.service.config import ServiceConfig
from turnwise_learner.service.server import Service, running

DOMAIN_FILE = Path(__file__).with_name("domain.yaml")


class Servers:
    """Both of them, channels to their doors, and a trainer that says yes to everything."""

    def __init__(self, service: Service, actor: ActorServer, local_token: Any) -> None:
        self.actor = actor.address
        self.frontend = grpc.aio.insecure_channel(actor.address)
        self.operator = grpc.aio.insecure_channel(service.address)
        self.local_address = service.local_address
        self.local = grpc.aio.insecure_channel(service.local_address)
        self.token = local_token
        hello = training_pb2.TrainerHello(pid=1, cause="start", journal_id=service.journal.journal_id)
        self.hello = training_pb2.TrainerMessage(hello=hello)
        self._numbers = itertools.count()
        self._started = dialogue_pb2.StartDialogueReply()
        self._turn = dialogue_pb2.Turn()
        self._requests: dict[str, list[Any]] = {}
        self._trainer = asyncio.create_task(self._train())

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator[Servers]:
        """Started, with one dialogue begun."""
        data = folder / "data"
        config = ServiceConfig(domain=DOMAIN_FILE, data=data, listen="127.0.0.1:0", start_trainer=False)
        config.create_folders()
        policy = initial_policy(Domain.load(DOMAIN_FILE)).to_bytes()
        (data / "policies/0.0.safetensors").write_bytes(policy)
        keys = folder / "token-keys.json"
        keys.write_text(json.dumps(KEY_FILE))
        async with AsyncExitStack() as stack:
            service = await stack.enter_async_context(running(config))
            actor = ActorServer(
                ActorConfig(
                    domain_file=DOMAIN_FILE,
                    learner_address=service.address,
                    listen_address="127.0.0.1:0",
                    key_file=keys,
                    spool_folder=folder / "spool",
                    policy_path=data / "policies",
                    uplink=UplinkConfig(settle_wait_ms=5000),
                )
            )
            await actor.start()
            stack.push_async_callback(actor.stop)
            servers = cls(service, actor, ClientAccess(token_file=data / LOCAL_TOKEN).metadata())
            stack.push_async_callback(servers.close)
            await servers.renew()
            yield servers

    async def close(self) -> None:
        """Hangs up."""
        self._trainer.cancel()
        await asyncio.gather(self._trainer, return_exceptions=True)
        for channel in (self.frontend, self.operator, self.local):
            await channel.close(None)

    async def renew(self) -> None:
        """Begins another dialogue: a decision may be continued in so many ways only."""
        stub: Any = DialogueStub(self.frontend)
        start = dialogue_pb2.StartDialogueRequest(dialogue_id=f"d{next(self._numbers)}", user="ann")
        self._started = await stub.StartDialogue(start)
        self._turn = await stub.Act(self._act(self._started.token))
        self._requests = self._valid()

    def good_turn(self, correlation_id: int) -> dialogue_pb2.ConverseRequest:
        """A request on a stream that gets a turn."""
        return dialogue_pb2.ConverseRequest(correlation_id=correlation_id, act=self._act(self._started.token))

    def good_batch(self, dialogue_id: str) -> training_pb2.FactBatch:
        """A batch of facts that are taken."""
        started = training_pb2.Fact(key=f"s:{dialogue_id}", dialogue_id=dialogue_id, time_ms=1)
        started.started.user = "ann"
        batch = training_pb2.FactBatch(sequence=5, facts=[started])
        decided = batch.facts.add(key=f"d:{dialogue_id}", dialogue_id=dialogue_id, time_ms=2)
        decided.decided.decision_id, decided.decided.action = dialogue_id, "greet"
        batch.facts.add(key=f"f:{dialogue_id}", dialogue_id=dialogue_id).feedback.reward = 1
        batch.facts.add(key=f"v:{dialogue_id}", dialogue_id=dialogue_id).delivered.how = 1  # type: ignore[assignment]
        batch.facts.add(key=f"e:{dialogue_id}:", dialogue_id=dialogue_id).ended.outcome = "idle"
        batch.report.address, batch.report.incarnation = "127.0.0.1:1", "1"
        return batch

    def valid(self, kind: str) -> list[Any]:
        """Requests of a type that are answered, each of another sort."""
        kinds = {**vars(dialogue_pb2), **vars(training_pb2)}
        return self._requests.get(kind) or [kinds[kind]()]

    def _valid(self) -> dict[str, list[Any]]:
        pb, turn = dialogue_pb2, self._turn
        about: Any = {"dialogue_id": turn.dialogue_id, "decision_id": turn.decision_id, "token": turn.token}
        feedback = [
            pb.FeedbackRequest(**about, feedback_id="f", reward=1.0),
            pb.FeedbackRequest(**about, feedback_id="g", correction="greet", comment="so", revision=3),
            pb.FeedbackRequest(**about, feedback_id="h", retraction=pb.Retraction()),
            pb.FeedbackRequest(
                **about, feedback_id="i", overridden=pb.Overridden(action="greet", probability=1)
            ),
            pb.FeedbackRequest(**about, feedback_id="j", dropped=pb.Dropped(), comment="no"),
        ]
        end = pb.EndRequest(token=turn.token, outcome="idle", request_id="e", reward=0.5, last_state=_seen())
        start = pb.StartDialogueRequest(dialogue_id="d", user="ann", mode=pb.SERVE)
        acts = [self._act(turn.token), self._act(self._started.token)]
        version = turn.policy_version
        return {
            "StartDialogueRequest": [start],
            "ActRequest": acts,
            "FeedbackRequest": feedback,
            "EndRequest": [end],
            "ConverseRequest": [
                *(pb.ConverseRequest(correlation_id=1, act=act) for act in acts),
                *(pb.ConverseRequest(correlation_id=2, feedback=each) for each in feedback),
                pb.ConverseRequest(correlation_id=3, end=end),
                pb.ConverseRequest(correlation_id=4, start=start),
            ],
            "FactBatch": [self.good_batch("near")],
            "WatchPolicyRequest": [
                training_pb2.WatchPolicyRequest(domain_fingerprint=turn.domain_fingerprint, actor="a"),
                training_pb2.WatchPolicyRequest(have=dialogue_pb2.PolicyVersion(generation=9)),
            ],
            "SetExplorationRequest": [
                training_pb2.SetExplorationRequest(mode=pb.TEACH, epsilon=0.5, temperature=1.0),
                training_pb2.SetExplorationRequest(mode=pb.SERVE, kind=training_pb2.Exploration.SOFTMAX),
            ],
            "RollbackRequest": [training_pb2.RollbackRequest(version=version)],
            "ListVersionsRequest": [training_pb2.ListVersionsRequest(limit=5)],
            "GetStatusRequest": [training_pb2.GetStatusRequest(interval_ms=50)],
            "TrainerMessage": [
                training_pb2.TrainerMessage(done=training_pb2.CommandDone(id=1, paused=True)),
                training_pb2.TrainerMessage(
                    published=training_pb2.PolicyPublished(
                        version=dialogue_pb2.PolicyVersion(generation=1, number=1), file="0.0.safetensors"
                    )
                ),
                training_pb2.TrainerMessage(
                    report=training_pb2.TrainerReport(last_checkpoint=training_pb2.CheckpointInfo(path="x"))
                ),
            ],
        }

    def _act(self, token: bytes) -> dialogue_pb2.ActRequest:
        return dialogue_pb2.ActRequest(token=token, observation=_seen(), request_id="r", allowed=["greet"])

    async def _train(self) -> None:
        """Attaches, and answers every command at once."""
        stub: Any = TrainerStub(self.local)
        call = stub.Attach(metadata=self.token)
        await call.write(self.hello)
        while isinstance(command := await call.read(), training_pb2.TrainerCommand):
            done = training_pb2.CommandDone(id=command.id)
            match command.WhichOneof("command"):
                case "pause":
                    done.paused = command.pause
                case "save_checkpoint":
                    done.checkpoint.path = "nowhere"
                case "set_exploration":
                    done.exploration.SetInParent()
            if command.id:
                await call.write(training_pb2.TrainerMessage(done=done))


def _seen() -> dialogue_pb2.Observation:
    seen = dialogue_pb2.Observation(text="hello", features=bytes(8))
    seen.slots.add(name="intent", category="order")
    seen.slots.add(name="items", number=3)
    seen.slots.add(name="vip", flag=True)
    return seen
