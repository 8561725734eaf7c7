"""What a turn costs with very many dialogues open: turns that go round all of them against as many of a few.

The actor keeps nothing of a dialogue. The trainer keeps some thousands folded, and folds the others again
from the journal when they speak: here every one that speaks. Both sides run in one deployment, over the same
streams, with the same replay, and each round lasts until the trainer has read its last turn.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from live import status
from loads import CONNECTIONS, SESSIONS, Rotation, Session, Speaker, begin, stream_turns
from processes import cpu_s
from report import say
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1.dialogue_pb2_grpc import DialogueStub
from turnwise_deploy.local import DeploymentError, LocalDeployment

TOGETHER = 64
"""Requests in one message while dialogues are opened."""
ON_A_STREAM = 10_000
"""Dialogues opened on one stream: it is told to move on after some minutes."""
READ_PATIENCE_S = 600.0
_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Plan:
    """How many."""

    open: int
    turns: int
    """Of a round, on either side."""
    rounds: int


FULL = Plan(open=100_000, turns=20_000, rounds=5)
"""Each dialogue speaks once after it was opened, and has been forgotten until then."""
SHORT = Plan(open=20_000, turns=4_000, rounds=3)


@dataclass
class Costs:
    """CPU microseconds a turn, by process, a number a round."""

    us: dict[str, list[float]] = field(default_factory=dict)

    def add(self, seconds: dict[str, float], turns: int) -> None:
        """A round."""
        for name, one in seconds.items():
            self.us.setdefault(name, []).append(1e6 * one / turns)

    def counted(self) -> list[float]:
        """Of the actor and the trainer together."""
        return [a + b for a, b in zip(self.us["actor"], self.us["trainer"], strict=True)]

    def medians(self) -> dict[str, float]:
        """By process."""
        return {name: statistics.median(costs) for name, costs in self.us.items()}


async def measure_open(up: LocalDeployment, plan: Plan) -> tuple[float, dict[str, Any]]:
    """Cost with all of them open over the cost of a few, median of the rounds; and the figures."""
    began = time.monotonic()
    many = await open_dialogues(up, plan.open)
    opened_s = time.monotonic() - began
    say(f"{plan.open} dialogues are open and known to the trainer after {opened_s:.0f} s")
    slots = CONNECTIONS * SESSIONS
    all_of_them = [Rotation(many[i::slots]) for i in range(slots)]
    few_costs, many_costs = Costs(), Costs()
    for number in range(plan.rounds):
        few = await begin(up.actors[0], slots)
        for costs, speakers in ((few_costs, few), (many_costs, all_of_them)):
            await take(up, costs, speakers, plan.turns)
        words = f"few {few_costs.counted()[-1]:.0f} us, all {many_costs.counted()[-1]:.0f} us"
        say(f"open dialogues, round {number + 1} of {plan.rounds}: {words}")
    ratio = ratio_of(many_costs, few_costs)
    figures = {
        "open": plan.open,
        "opened_s": opened_s,
        "turns_a_round": plan.turns,
        "few_us_per_turn": few_costs.medians(),
        "all_us_per_turn": many_costs.medians(),
    }
    return ratio, figures


def ratio_of(many: Costs, few: Costs) -> float:
    """Median over the rounds."""
    return statistics.median(a / b for a, b in zip(many.counted(), few.counted(), strict=True))


async def take(up: LocalDeployment, costs: Costs, speakers: Sequence[Speaker], turns: int) -> None:
    """One round of one side."""
    processes = await _processes(up)
    known = (await _status(up)).decisions
    before = {name: cpu_s(pid) for name, pid in processes.items()}
    done = await stream_turns((up.actors[0],), speakers, lambda count: count >= turns)
    await read_by_the_trainer(up, known + done)
    costs.add({name: cpu_s(pid) - before[name] for name, pid in processes.items()}, done)


async def open_dialogues(up: LocalDeployment, count: int) -> list[Session]:
    """Dialogues of one turn each, which the trainer has read."""
    known = (await _status(up)).decisions
    sessions: list[Session] = []
    while len(sessions) < count:
        async with grpc.aio.insecure_channel(up.actors[0]) as channel:
            call = DialogueStub(channel).Converse()
            for _ in range(0, min(ON_A_STREAM, count - len(sessions)), TOGETHER):
                sessions += await _open_together(call, min(TOGETHER, count - len(sessions)))
            await call.done_writing()
    await read_by_the_trainer(up, known + count)
    return sessions


async def _open_together(call: Any, count: int) -> list[Session]:
    names = [f"open-{os.urandom(8).hex()}" for _ in range(count)]
    starts = [pb.ConverseRequest(start=pb.StartDialogueRequest(dialogue_id=name)) for name in names]
    begun = [Session(reply.started.token) for reply in await _ask(call, starts)]
    acts = [pb.ConverseRequest(act=session.request()) for session in begun]
    for session, reply in zip(begun, await _ask(call, acts), strict=True):
        session.token = reply.turn.token
    return begun


async def _ask(call: Any, requests: list[pb.ConverseRequest]) -> list[pb.ConverseReply]:
    """All in one message; the replies in the requests' order."""
    for number, request in enumerate(requests, 1):
        request.correlation_id = number
    requests[0].also.extend(requests[1:])
    await call.write(requests[0])
    replies: dict[int, pb.ConverseReply] = {}
    while len(replies) < len(requests):
        first = await call.read()
        for reply in (first, *first.also):
            if reply.WhichOneof("reply") not in ("started", "turn"):
                raise DeploymentError(f"the actor answered {reply}")
            replies[reply.correlation_id] = reply
    return [replies[number] for number in sorted(replies)]


async def read_by_the_trainer(up: LocalDeployment, decisions: int = 0) -> None:
    """Waits until so many are in the journal and the trainer has read all that is there."""
    deadline = time.monotonic() + READ_PATIENCE_S
    while True:
        seen = await _status(up)
        if seen.decisions >= decisions and seen.trainer.journal_cursor >= seen.journal_cursor:
            return
        if time.monotonic() > deadline:
            raise DeploymentError(
                f"the trainer has read {seen.trainer.journal_cursor} of {seen.journal_cursor} facts "
                f"after {READ_PATIENCE_S:.0f} s; {seen.decisions} decisions of {decisions} are journaled"
            )
        await asyncio.sleep(_LOOK_EVERY_S)


async def _status(up: LocalDeployment) -> Any:
    return await asyncio.to_thread(status, up.learner)


async def _processes(up: LocalDeployment) -> dict[str, int]:
    pids = up.pids()
    found = {"actor": pids[up.actors[0]], "service": pids[up.learner]}
    found["trainer"] = (await _status(up)).trainer.pid
    return {name: pid for name, pid in found.items() if pid}
