"""The service's side of the stream to the trainer: who is attached, what it said, what it is asked.

A session lives so: the trainer says hello and gets its generation; a task sends it commands, and the
journal's growth when it waits for that, while the call reads its reports, published policies and answers. A
later hello takes the place of the session; when the stream breaks, commands in flight fail as unavailable.
"""

import asyncio
import itertools
import logging
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.policy import PolicyVersion
from turnwise_learner.service import versions
from turnwise_learner.service.broadcast import Broadcast, PolicyOnAir
from turnwise_learner.service.errors import Answering, Context, RefusedError, invalid, unavailable
from turnwise_learner.service.journal import Journal
from turnwise_learner.service.standing_orders import StandingOrders

log = logging.getLogger(__name__)

TRAINER_AWAY = "the trainer is away: try again when it has started"

_LARGEST = 2**63 - 1
"""SQLite's largest number."""
_LAST_MESSAGE_S = 1.0
"""Time for the message that is being sent when a stream ends."""

_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


class _Session:
    """One attached trainer."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.commands: deque[training_pb2.TrainerCommand] = deque()
        self.cursor = 0
        """The journal's last position."""
        self.waits_after: int | None = None
        """It is sent when it is beyond this; None: the trainer does not wait for it."""
        self.wake = asyncio.Event()
        self.superseded = asyncio.Event()
        self.closed = False
        self.answers: dict[int, asyncio.Future[training_pb2.CommandDone]] = {}

    def send(self, command: training_pb2.TrainerCommand) -> None:
        self.commands.append(command)
        self.wake.set()

    def journal_grew(self, cursor: int) -> None:
        self.cursor = cursor
        if self.is_awaited:
            self.wake.set()

    def await_growth(self, after: int) -> None:
        """The trainer waits for the journal to grow beyond `after`."""
        self.waits_after = after
        if self.is_awaited:
            self.wake.set()

    @property
    def is_awaited(self) -> bool:
        """Whether the trainer waits for what the journal has by now."""
        return self.waits_after is not None and self.cursor > self.waits_after

    def close(self) -> None:
        """Nothing more is to be sent."""
        self.closed = True
        self.wake.set()

    def fail(self, error: RefusedError) -> None:
        for answer in self.answers.values():
            if not answer.done():
                answer.set_exception(error)


class TrainerLink:
    """Knows the attached trainer, if there is one; never more than one."""

    def __init__(
        self, journal: Journal, broadcast: Broadcast, policies: Path, orders: StandingOrders
    ) -> None:
        self._journal = journal
        self._broadcast = broadcast
        self._policies = policies
        self._orders = orders
        self._session: _Session | None = None
        self._ids = itertools.count(1)
        self._checkpoint = ""
        """The newest checkpoint folder that the trainer told of."""
        self._newest_generation = 0
        """That is known to have begun."""
        self._version_held: PolicyVersion | None = None
        """What it holds, until that is recorded."""
        self._unrecorded: list[training_pb2.PolicyPublished] = []
        """Versions that the journal is still to be told of."""
        self._record_again = False
        self._recording: asyncio.Task[None] | None = None
        self.report = training_pb2.TrainerReport()
        """The newest report; of a trainer that is away, its last."""
        journal.listen(self._journal_grew)

    @property
    def attached(self) -> bool:
        """Whether a trainer is there."""
        return self._session is not None

    async def command(
        self, command: training_pb2.TrainerCommand, timeout_s: float
    ) -> training_pb2.CommandDone:
        """Sends a command and returns the trainer's answer.

        Raises:
            RefusedError: UNAVAILABLE: no trainer, or it went away before it answered; DEADLINE_EXCEEDED: no
                answer in time, the command may still be carried out; else as the trainer said.
        """
        session = self._session
        if session is None:
            raise unavailable(TRAINER_AWAY)
        command.id = next(self._ids)
        answer = asyncio.get_running_loop().create_future()
        session.answers[command.id] = answer
        session.send(command)
        try:
            done: training_pb2.CommandDone = await asyncio.wait_for(answer, timeout_s)
        except asyncio.TimeoutError:
            message = f"the trainer has not answered within {timeout_s:.3g} s; it may still do it"
            raise RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, message) from None
        finally:
            del session.answers[command.id]
        if done.error:
            code = _STATUS_CODES.get(done.code, grpc.StatusCode.INTERNAL)
            raise RefusedError(grpc.StatusCode.INTERNAL if code is grpc.StatusCode.OK else code, done.error)
        if done.HasField("checkpoint"):
            await self._note_checkpoint(done.checkpoint)
        await self.recorded()
        return done

    async def begin_generation(self, cause: str) -> int:
        """Journals a new generation, beyond every policy that may be at an actor."""
        current = self._broadcast.current
        above = 0 if current is None else current.version.generation
        generation = await self._journal.submit(lambda c: versions.begin_generation(c, cause, above))
        self._newest_generation = max(self._newest_generation, generation)
        return generation

    async def attach(self, hello: training_pb2.TrainerHello) -> _Session:
        """Begins a session; the one before ends.

        Raises:
            RefusedError: The trainer does not belong to this journal, or another has begun since.
        """
        if hello.journal_id != self._journal.journal_id:
            message = (
                f"journal_id: got {hello.journal_id!r}; wanted {self._journal.journal_id!r}: this trainer, "
                "or the checkpoint it came from, belongs to another journal"
            )
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, message)
        if hello.cause not in ("start", "resume", ""):
            raise invalid("cause", repr(hello.cause), "start, resume, or nothing on a reconnect")
        if hello.cause:
            generation = await self.begin_generation(hello.cause)
        else:
            generation = await self._known_generation(hello)
        self._end_session()
        session = self._session = _Session(hello.pid)
        cursor = self._journal.last_cursor
        welcome = training_pb2.Welcome(
            generation=generation,
            journal_cursor=cursor,
            paused=self._orders.paused,
            exploration=self._orders.exploration,
        )
        session.send(training_pb2.TrainerCommand(welcome=welcome))
        session.cursor = cursor
        log.info("trainer %d attached (%s), generation %d", hello.pid, hello.cause or "again", generation)
        return session

    def detach(self, session: _Session) -> None:
        """The stream of a session has ended."""
        if self._session is session:
            log.info("trainer %d is away", session.pid)
            self._end_session()

    async def take(self, session: _Session, message: training_pb2.TrainerMessage) -> None:
        """Takes one message of the trainer."""
        match message.WhichOneof("message"):
            case "report":
                self.report = message.report
                if message.report.HasField("last_checkpoint"):
                    await self._note_checkpoint(message.report.last_checkpoint)
            case "published":
                await self._publish(message.published)
            case "done":
                answer = session.answers.get(message.done.id)
                if answer is not None and not answer.done():
                    answer.set_result(message.done)
            case "waits_after":
                session.await_growth(message.waits_after)
            case other:
                wanted = "report, published, done or waits_after after the first hello"
                raise invalid("message", other, wanted)

    async def _known_generation(self, hello: training_pb2.TrainerHello) -> int:
        newest = await self._journal.submit(versions.trainer_generation)
        if not 0 < newest <= hello.generation:
            message = (
                f"generation: got {hello.generation}; wanted {newest} or a rollback of it: another trainer "
                "has begun since"
            )
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, message)
        return hello.generation

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.fail(unavailable("the trainer went away before it answered"))
            session.superseded.set()

    def _journal_grew(self, cursor: int) -> None:
        if self._session is not None:
            self._session.journal_grew(cursor)

    async def _publish(self, published: training_pb2.PolicyPublished) -> None:
        """Puts a policy file on air; it is recorded when the journal has time."""
        version = PolicyVersion(published.version.generation, published.version.number)
        if Path(published.file).name != published.file or not published.file:
            raise invalid("published.file", repr(published.file), "a file's name in the policies folder")
        if version.generation > self._newest_generation:
            # Asked only when it may have changed: the journal may be in the midst of a commit.
            self._newest_generation = await self._journal.submit(versions.newest_generation)
        if version.generation > (newest := self._newest_generation):
            raise invalid("published.version", version, f"a generation that has begun, {newest} at most")
        for name in ("learned_through", "updates"):
            if getattr(published, name) > _LARGEST:
                raise invalid(f"published.{name}", getattr(published, name), f"at most {_LARGEST}")
        if version.number > _LARGEST:
            raise invalid("published.version", version, f"a number of at most {_LARGEST}")
        try:
            policy = PolicyOnAir(version, published.learned_through, self._policies / published.file)
        except FileNotFoundError:
            log.info("policy %s is not broadcast: its file has made room for newer ones", version)
            return
        except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
            log.error("policy %s is not broadcast: %s", version, error)
            return
        if not self._broadcast.put(policy):
            log.warning("policy %s is not broadcast: there is a newer one", version)
        self._unrecorded.append(published)
        self._record_soon()

    async def _note_checkpoint(self, info: training_pb2.CheckpointInfo) -> None:
        if info.path and info.path != self._checkpoint:
            held = await asyncio.to_thread(versions.version_held, Path(info.path))
            self._checkpoint, self._version_held = info.path, held
            self._record_soon()

    def _record_soon(self) -> None:
        """Nobody waits for it: policies come twenty a second, and a busy journal takes longer to commit."""
        self._record_again = True
        if self._recording is None or self._recording.done():
            self._recording = asyncio.create_task(self._record(), name="version-recorder")

    async def recorded(self) -> None:
        """Returns when the journal knows the versions and checkpoints that were told so far."""
        if self._recording is not None:
            await asyncio.wait((self._recording,))

    async def _record(self) -> None:
        """Records what has come, in one transaction after the other.

        A checkpoint goes with the version that it holds, and waits for one that is published only later.
        """
        while self._record_again:
            self._record_again = False
            published, self._unrecorded = self._unrecorded, []
            held, path = self._version_held, self._checkpoint
            recording = self._journal.submit(partial(versions.record, published, held, path))
            try:
                if await recording and (held, path) == (self._version_held, self._checkpoint):
                    self._version_held = None
            except Exception:
                # They stay on air, and the checkpoint is tried again with the next version.
                log.exception("%d versions are not recorded", len(published))


class TrainerServicer(training_pb2_grpc.TrainerServicer):
    """Answers the trainer."""

    def __init__(self, link: TrainerLink) -> None:
        self._link = link

    async def Attach(self, request_iterator: object, context: object) -> None:  # type: ignore[override]
        """See training.proto."""
        async with Answering(context) as call:
            first = await call.read()
            if not isinstance(first, training_pb2.TrainerMessage):
                return
            if not first.HasField("hello"):
                raise invalid("message", first.WhichOneof("message"), "hello, as the first of a stream")
            session = await self._link.attach(first.hello)
            try:
                await self._run(call, session)
            finally:
                self._link.detach(session)
                await self._link.recorded()

    async def _run(self, call: Context, session: _Session) -> None:
        """Until the trainer ends the stream, or another one has attached."""
        reading = asyncio.create_task(self._read(call, session), name="trainer-reader")
        sending = asyncio.create_task(self._send(call, session), name="trainer-sender")
        superseded = asyncio.create_task(session.superseded.wait(), name="trainer-superseded")
        tasks: tuple[asyncio.Task[Any], ...] = (reading, sending, superseded)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            session.close()
            # The status cannot be sent beside another message: the one on its way goes first.
            await asyncio.wait((sending,), timeout=_LAST_MESSAGE_S)
            for task in tasks:
                task.cancel()
        if superseded in done:
            raise RefusedError(grpc.StatusCode.ABORTED, "another trainer has attached")
        for task in done:
            await task

    async def _read(self, call: Context, session: _Session) -> None:
        while isinstance(message := await call.read(), training_pb2.TrainerMessage):
            await self._link.take(session, message)

    async def _send(self, call: Context, session: _Session) -> None:
        while not session.closed:
            await session.wake.wait()
            session.wake.clear()
            while session.commands and not session.closed:
                await call.write(session.commands.popleft())
            if session.is_awaited and not session.closed:
                session.waits_after = None
                await call.write(training_pb2.TrainerCommand(journal_cursor=session.cursor))
