"""Who may call an actor, over what."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import turnwise
from tests.authority import Authority
from turnwise import _discovery
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1 import training_pb2
from turnwise.v1.training_pb2_grpc import add_TrainingServicer_to_server
from turnwise_actor.access import credentials as credential_file
from turnwise_actor.access.client_access import ClientAccess, Link
from turnwise_actor.access.guard import Guard, callers_of, roles_for
from turnwise_actor.access.server_access import AccessError, ServerAccess
from turnwise_actor.server import ActorServer

from .conftest import ActorFactory, eventually
from .frontend import Frontend, read_status, refusal
from .learner_end import LearnerEnd
from .test_converse import Stream, turn_of
from .test_process import run

Connect = Callable[..., Frontend]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """A credential file in which `web` is a frontend and `tom` a teacher, their tokens in files."""
    file = tmp_path / "keys" / "credentials.json"
    for name, role in (("web", "frontend"), ("tom", "teacher"), ("act", "actor"), ("ops", "operator")):
        (tmp_path / name).write_text(credential_file.add_credential(file, name, [role]) + "\n")
    return file


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Connect]:
    """Frontends that bring what a client brings: a token by its file's name, certificates."""
    links: list[Link] = []

    def connect(actor: ActorServer, token: str = "", access: ClientAccess | None = None) -> Frontend:
        access = access or ClientAccess()
        if token:
            access = replace(access, token_file=tmp_path / token)
        links.append(Link(actor.address, access, [("grpc.use_local_subchannel_pool", 1)]))
        return Bearing(links[-1])

    yield connect
    for link in links:
        await link.close()


class Bearing(Frontend):
    """A frontend whose calls bring its link's token."""

    def __init__(self, link: Link) -> None:
        super().__init__(link.channel())
        self.stub = _Bearing(self.stub, link)


class _Bearing:
    def __init__(self, stub: Any, link: Link) -> None:
        self._stub, self._link = stub, link

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._stub, name)
        return lambda *arguments: call(*arguments, metadata=self._link.metadata(), timeout=5)


async def code_of(call: Awaitable[Any]) -> tuple[str, str]:
    """Code and message of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code().name, refused.value.details() or ""


async def test_a_client_in_plain_text_gets_nothing_from_an_actor_with_tls(
    new_actor: ActorFactory, authority: Authority, connect: Connect
) -> None:
    actor, plain = await new_actor(access=authority.server())
    assert (await code_of(plain.start()))[0] == "UNAVAILABLE"
    assert (await connect(actor, access=authority.client()).start("d1")).dialogue_id == "d1"


async def test_an_actor_with_a_certificate_of_another_ca_is_not_trusted(
    new_actor: ActorFactory, authority: Authority, connect: Connect, tmp_path: Path
) -> None:
    actor, _ = await new_actor(access=authority.server())
    stranger = Authority(tmp_path / "other")
    assert (await code_of(connect(actor, access=stranger.client()).start()))[0] == "UNAVAILABLE"


async def test_with_mutual_tls_a_client_needs_a_certificate_of_the_ca(
    new_actor: ActorFactory, authority: Authority, connect: Connect, tmp_path: Path
) -> None:
    actor, _ = await new_actor(access=authority.server(mutual=True))
    forger = Authority(tmp_path / "other").issue("web", "frontend")
    forged = ClientAccess(ca=authority.file, certificate=forger.certificate, key=forger.key)
    for access in (authority.client(), forged):
        assert (await code_of(connect(actor, access=access).start()))[0] == "UNAVAILABLE"
    web = authority.client("web", "frontend")
    assert (await connect(actor, access=web).start("d1")).dialogue_id == "d1"


async def test_without_a_credential_file_a_certificates_unit_is_its_role(
    new_actor: ActorFactory, authority: Authority, connect: Connect
) -> None:
    actor, _ = await new_actor(access=authority.server(mutual=True))
    for unit, got in (("operator", "ops has the role operator"), ("", "ops has the role none")):
        access = authority.client("ops", unit)
        code, message = await code_of(connect(actor, access=access).start())
        assert code == "PERMISSION_DENIED"
        assert got in message


async def test_a_certificates_name_is_looked_up_in_the_credential_file(
    new_actor: ActorFactory, authority: Authority, connect: Connect, credentials: Path
) -> None:
    credential_file.add_certificate(credentials, "kiosk", ["frontend"])
    actor, _ = await new_actor(access=authority.server(mutual=True, credentials=credentials))
    assert (await connect(actor, access=authority.client("kiosk")).start("d1")).dialogue_id == "d1"
    # A unit gives no role where there is a file, and a token says more than a certificate.
    unknown = connect(actor, access=authority.client("nobody", "frontend"))
    assert (await code_of(unknown.start()))[0] == "UNAUTHENTICATED"
    other = connect(actor, "ops", access=authority.client("kiosk"))
    assert (await code_of(other.start()))[0] == "PERMISSION_DENIED"


async def test_the_sdk_talks_over_tls_with_a_bearer_token(
    new_actor: ActorFactory, authority: Authority, credentials: Path, tmp_path: Path
) -> None:
    actor, _ = await new_actor(access=authority.server(credentials=credentials))
    access = ClientAccess(ca=authority.file, token_file=tmp_path / "web")
    tls = access.channel_credentials()
    async with (
        turnwise.AsyncClient(actor.address, access.token, tls) as bot,
        bot.dialogue("d1", user="ann") as talk,
    ):
        assert (await talk.act(text="hello", features=[0.0, 0.0])).action
    async with turnwise.AsyncClient(actor.address, "tw_wrong", authority.file) as bot:
        for call in (bot.domain(), bot.dialogue().act(text="hello")):
            with pytest.raises(turnwise.AccessDenied, match="unknown, revoked or expired"):
                await call


async def test_an_actor_found_by_name_shows_a_certificate_of_that_name(
    new_actor: ActorFactory, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, _ = await new_actor(access=authority.server(), listen_address="127.0.0.2:0")
    port = actor.address.rpartition(":")[2]
    monkeypatch.setattr(_discovery, "look_up", lambda host, port: [actor.address])
    async with turnwise.AsyncClient(f"dns:///localhost:{port}", tls=authority.file) as bot:
        assert (await bot.domain()).name == "shop"
        assert (await bot.dialogue().act(text="hello", features=[0, 0])).index == 0
    for address in (actor.address, f"dns:///another.example:{port}"):
        async with turnwise.AsyncClient(address, tls=authority.file, timeout=1) as bot:
            with pytest.raises(turnwise.ActorUnavailable):
                await bot.domain()


def test_every_method_has_a_rule_and_what_has_none_is_for_nobody() -> None:
    services = [
        pb.DESCRIPTOR.services_by_name["Dialogue"],
        *training_pb2.DESCRIPTOR.services_by_name.values(),
    ]
    wanted = {
        "Dialogue": {"frontend", "teacher"},
        "Training": {"actor"},
        "Registry": {"frontend", "teacher", "operator"},
        "Operator": {"operator"},
        "Trainer": {"trainer"},
    }
    for service in services:
        for method in service.methods:
            expected = wanted[service.name] | ({"operator"} if method.name == "DescribeDomain" else set())
            assert roles_for(f"/{service.full_name}/{method.name}") == expected
    assert roles_for("/turnwise.v1.NotYet/Call") == frozenset()
    assert roles_for("/grpc.health.v1.Health/Check") is None


async def test_only_frontends_and_teachers_may_talk(
    new_actor: ActorFactory, connect: Connect, credentials: Path, tmp_path: Path
) -> None:
    actor, nobody = await new_actor(access=ServerAccess(credentials=credentials))
    (tmp_path / "forged").write_text("tw_forged")
    for token in ("web", "tom"):
        assert (await connect(actor, token).start()).token
    for token in ("act", "ops"):
        bot = connect(actor, token)
        stream = bot.stub.Converse()
        for call in (bot.start(), bot.stub.Act(pb.ActRequest()), stream.read()):
            code, message = await code_of(call)
            assert code == "PERMISSION_DENIED"
            assert "is for frontend or teacher" in message
    for bot, got in ((nobody, "got none"), (connect(actor, "forged"), "unknown, revoked or expired")):
        for call in (bot.start(), bot.stub.Converse().read()):
            code, message = await code_of(call)
            assert (code, got in message) == ("UNAUTHENTICATED", True), message
    assert (await connect(actor, "ops").stub.DescribeDomain(pb.DescribeDomainRequest())).name == "shop"


async def test_who_calls_is_asked_before_what_they_say_is_read(
    new_actor: ActorFactory, credentials: Path
) -> None:
    _, nobody = await new_actor(access=ServerAccess(credentials=credentials))
    call = nobody.channel.unary_unary("/turnwise.v1.Dialogue/Act", None, None)(b"\xff")
    assert (await code_of(call))[0] == "UNAUTHENTICATED"


async def test_a_refused_call_trains_nothing(
    new_actor: ActorFactory, connect: Connect, credentials: Path, learner: LearnerEnd
) -> None:
    actor, nobody = await new_actor(access=ServerAccess(credentials=credentials))
    turn = await connect(actor, "web").act((await connect(actor, "web").start("d1")).token)
    await eventually(lambda: len(learner.facts) == 2)
    for bot in (nobody, connect(actor, "ops")):
        for call in (bot.feedback(turn, reward=1.0), bot.end(turn.token), bot.act(turn.token)):
            assert (await code_of(call))[0] in ("UNAUTHENTICATED", "PERMISSION_DENIED")
    await connect(actor, "web").end(turn.token)
    assert {fact.WhichOneof("kind") for fact in learner.facts.values()} == {"started", "decided", "ended"}


async def test_a_teachers_feedback_is_its_own(
    new_actor: ActorFactory, connect: Connect, credentials: Path, learner: LearnerEnd
) -> None:
    actor, _ = await new_actor(access=ServerAccess(credentials=credentials))
    tom, web = connect(actor, "tom"), connect(actor, "web")
    turn = await web.act((await web.start("d1", user="ann")).token)
    await tom.feedback(turn, feedback_id="f1", reward=1.0)
    await tom.feedback(turn, feedback_id="f2", reward=1.0, teacher="tom")
    told = await refusal(tom.feedback(turn, feedback_id="f3", reward=1.0, teacher="ann"))
    assert (told.code, told.reason) == ("PERMISSION_DENIED", "TEACHER_FOREIGN")
    stream = Stream(tom)
    given = pb.FeedbackRequest(dialogue_id="d1", feedback_id="f4", reward=1.0, teacher="ann")
    assert read_status((await stream.ask(feedback=given)).status).reason == "TEACHER_FOREIGN"
    await stream.close()
    await tom.end(turn.token, reward=1.0, request_id="f5")
    by = {fact.feedback.feedback_id: fact.feedback.teacher for fact in learner.of_kind("feedback")}
    assert by == {"f1": "tom", "f2": "tom", "f5": "tom"}


async def test_a_frontend_speaks_for_its_users(
    new_actor: ActorFactory, connect: Connect, credentials: Path, learner: LearnerEnd
) -> None:
    actor, _ = await new_actor(access=ServerAccess(credentials=credentials))
    web = connect(actor, "web")
    turn = await web.act((await web.start("d1", user="ann")).token)
    await web.feedback(turn, feedback_id="f1", reward=1.0)
    await web.feedback(turn, feedback_id="f2", reward=1.0, teacher="ben")
    await web.feedback(turn, feedback_id="f3", reward=1.0, token=b"")
    by = {fact.feedback.feedback_id: fact.feedback.teacher for fact in learner.of_kind("feedback")}
    assert by == {"f1": "ann", "f2": "ben", "f3": "web"}


async def test_credentials_come_and_go_while_the_actor_runs(
    new_actor: ActorFactory, connect: Connect, credentials: Path, tmp_path: Path
) -> None:
    actor, _ = await new_actor(access=ServerAccess(credentials=credentials))
    (tmp_path / "kim").write_text(credential_file.add_credential(credentials, "kim", ["frontend"]))
    kim, web = connect(actor, "kim"), connect(actor, "web")
    await eventually_let_in(kim)
    revoked, kept = Stream(kim), Stream(web)
    token = (await revoked.ask(start=pb.StartDialogueRequest(dialogue_id="d1"))).started.token
    assert (await kept.ask(act=turn_of(token))).turn.recorded
    assert credential_file.revoke_credentials(credentials, "kim") == 1
    code, message = await code_of(revoked.receive())
    assert (code, "kim was changed, revoked" in message) == ("UNAUTHENTICATED", True)
    assert (await code_of(kim.start()))[0] == "UNAUTHENTICATED"
    assert (await kept.ask(act=turn_of(token))).turn.recorded, "the others' streams go on"
    await kept.close()


async def eventually_let_in(bot: Frontend) -> None:
    for _ in range(200):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await bot.start()
            return
        await asyncio.sleep(0.05)
    raise AssertionError("still refused after 10 s")


async def test_a_broken_credential_file_leaves_everybody_as_they_were(
    new_actor: ActorFactory, connect: Connect, credentials: Path, caplog: pytest.LogCaptureFixture
) -> None:
    actor, _ = await new_actor(access=ServerAccess(credentials=credentials))
    credentials.write_text("{")
    web = connect(actor, "web")
    await web.start()

    async def complained() -> bool:
        await web.start()
        return "keeping the credentials as before" in caplog.text

    while not await complained():
        await asyncio.sleep(0.05)
    assert (await web.start()).token


async def test_an_expired_credential_is_refused_and_its_stream_is_asked_to_move_before(
    new_actor: ActorFactory, connect: Connect, credentials: Path, tmp_path: Path
) -> None:
    soon = datetime.now(timezone.utc) + timedelta(seconds=2.5)
    (tmp_path / "brief").write_text(
        credential_file.add_credential(credentials, "brief", ["frontend"], expires=soon)
    )
    actor, _ = await new_actor(access=ServerAccess(credentials=credentials))
    bot = connect(actor, "brief")
    stream = Stream(bot)
    await stream.send(1, start=pb.StartDialogueRequest(dialogue_id="d1"))
    kinds = [(await stream.receive()).WhichOneof("reply") for _ in range(2)]
    assert kinds == ["started", "draining"]
    while datetime.now(timezone.utc) < soon:
        await asyncio.sleep(0.05)
    assert (await code_of(bot.start()))[0] == "UNAUTHENTICATED"


def add_slow(credentials: Path, folder: Path, rate: float) -> None:
    """A frontend that may ask so many times a second."""
    token = credential_file.add_credential(credentials, "slow", ["frontend"], rate=rate)
    (folder / "slow").write_text(token)


async def test_beyond_its_rate_a_callers_requests_are_turned_away(
    new_actor: ActorFactory, connect: Connect, credentials: Path, tmp_path: Path
) -> None:
    add_slow(credentials, tmp_path, rate=0.001)
    actor, _ = await new_actor(access=ServerAccess(credentials=credentials))
    bot, web = connect(actor, "slow"), connect(actor, "web")
    stream = Stream(bot)
    token = (await stream.ask(start=pb.StartDialogueRequest(dialogue_id="d1"))).started.token
    told = read_status((await stream.ask(act=turn_of(token))).status)
    assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMIT")
    assert "slow sends more than its 0.001 requests a second" in told.message
    assert (await refusal(bot.act(token))).reason == "RATE_LIMIT"
    assert (await web.act(token)).recorded, "the limit is each caller's own"
    await stream.close()


async def test_of_one_message_as_many_turns_are_answered_as_the_rate_allows(
    new_actor: ActorFactory, connect: Connect, credentials: Path, tmp_path: Path
) -> None:
    add_slow(credentials, tmp_path, rate=1.0)
    actor, _ = await new_actor(access=ServerAccess(credentials=credentials))
    tokens = [(await connect(actor, "web").start(f"d{number}")).token for number in range(10)]
    first, *others = (
        pb.ConverseRequest(correlation_id=number, act=turn_of(token)) for number, token in enumerate(tokens)
    )
    first.also.extend(others)
    stream = Stream(connect(actor, "slow"))
    await stream.write(first)
    told = {reply.correlation_id: reply for reply in await stream.receive_all(10)}
    assert {number for number, reply in told.items() if reply.HasField("turn")} == {0, 1}
    assert {read_status(told[number].status).reason for number in range(2, 10)} == {"RATE_LIMIT"}


async def test_health_is_open_and_reflection_is_not(
    new_actor: ActorFactory, connect: Connect, credentials: Path, tmp_path: Path
) -> None:
    _, nobody = await new_actor(access=ServerAccess(credentials=credentials))
    health: Any = health_pb2_grpc.HealthStub(nobody.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(nobody.channel)
    assert (await code_of(reflection.ServerReflectionInfo().read()))[0] == "UNAUTHENTICATED"
    bearer = (("authorization", f"Bearer {(tmp_path / 'ops').read_text().strip()}"),)
    call = reflection.ServerReflectionInfo(metadata=bearer)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    assert (await call.read()).list_services_response.service
    await call.done_writing()


def served_certificate(address: str) -> str:
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)))


async def test_a_renewed_certificate_is_served_without_a_restart(
    new_actor: ActorFactory, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    pair = authority.issue("server")
    actor, _ = await new_actor(access=authority.server(pair=pair))
    first, renewed = pair.certificate.read_text(), authority.issue("server", file="renewed")
    assert await asyncio.to_thread(served_certificate, actor.address) == first
    shutil.copy(renewed.certificate, pair.certificate)
    assert await asyncio.to_thread(served_certificate, actor.address) == first, "its key is not there yet"
    assert "keeping the certificate as before" in caplog.text
    shutil.copy(renewed.key, pair.key)
    assert await asyncio.to_thread(served_certificate, actor.address) == renewed.certificate.read_text()


async def test_a_client_certificate_of_a_withdrawn_ca_is_refused_without_a_restart(
    new_actor: ActorFactory, authority: Authority, connect: Connect, tmp_path: Path
) -> None:
    trusted = tmp_path / "trusted.pem"
    shutil.copy(authority.file, trusted)
    actor, _ = await new_actor(access=replace(authority.server(mutual=True), client_ca=trusted))
    web = authority.client("web", "frontend")
    assert (await connect(actor, access=web).start()).token
    shutil.copy(Authority(tmp_path / "next").file, trusted)
    assert (await code_of(connect(actor, access=web).start()))[0] == "UNAVAILABLE"


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:50051", "[::]:0", "bot.example.org:50051"])
def test_an_address_that_others_reach_wants_tls_and_a_credential(
    address: str, authority: Authority, credentials: Path
) -> None:
    ServerAccess(insecure=True).check(address)
    authority.server(mutual=True).check(address)
    authority.server(credentials=credentials).check(address)
    with pytest.raises(AccessError, match="wanted --tls-cert and --tls-key, and --tls-client-ca or --cred"):
        ServerAccess().check(address)
    with pytest.raises(AccessError, match="wanted --tls-client-ca or --credentials; or --insecure"):
        authority.server().check(address)
    with pytest.raises(AccessError, match="wanted --tls-cert and --tls-key; or --insecure"):
        ServerAccess(credentials=credentials).check(address)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:0", "[::1]:0", "127.8.0.1:50051"])
def test_loopback_wants_nothing(address: str) -> None:
    ServerAccess().check(address)


def test_an_actor_that_others_could_reach_does_not_start(
    domain_file: Path, key_file: Path, tmp_path: Path, authority: Authority, credentials: Path
) -> None:
    pair, other = authority.issue("server"), authority.issue("other")
    start = ["--domain", domain_file, "--learner", "127.0.0.1:1", "--keys", key_file]
    start += ["--spool", tmp_path / "spool", "--listen"]
    tls = ["--tls-cert", pair.certificate, "--tls-key"]
    for options, status, wanted in (
        (["0.0.0.0:0"], 2, "0.0.0.0:0 can be reached from other machines: wanted --tls-cert"),
        (["127.0.0.1:0", "--tls-cert", pair.certificate], 2, "--tls-cert and --tls-key: got one of them"),
        (["127.0.0.1:0", *tls, other.key], 78, "do not belong together"),
        (["127.0.0.1:0", *tls, tmp_path / "none.key"], 78, "No such file"),
        (["127.0.0.1:0", "--credentials", tmp_path / "none.json"], 78, "none.json: cannot be read"),
        (["127.0.0.1:0", "--learner-ca", domain_file], 78, f"CA file {domain_file}"),
    ):
        done: subprocess.CompletedProcess[str] = run(*start, *options)
        assert (done.returncode, wanted in done.stderr) == (status, True), done.stderr
        assert "Traceback" not in done.stderr


def test_a_token_never_travels_in_plain_text_to_another_machine(tmp_path: Path) -> None:
    bearer = ClientAccess(token_file=tmp_path / "token")
    bearer.check("127.0.0.1:50050")
    with pytest.raises(AccessError, match=r"unencrypted; wanted TLS"):
        bearer.check("learner.example.org:50050")
    replace(bearer, tls=True).check("learner.example.org:50050")


async def test_an_actor_that_the_learner_refuses_says_so_and_goes_on_once_it_is_let_in(
    new_actor: ActorFactory,
    authority: Authority,
    credentials: Path,
    tmp_path: Path,
    learner: LearnerEnd,
    caplog: pytest.LogCaptureFixture,
) -> None:
    callers = callers_of(ServerAccess(credentials=credentials))
    assert callers is not None
    server = grpc.aio.server(interceptors=(Guard(callers),))
    add_TrainingServicer_to_server(learner, server)
    port = authority.server(mutual=True).bind(server, "127.0.0.1:0")
    await server.start()
    token = tmp_path / "mine"
    shutil.copy(tmp_path / "web", token)
    access = authority.client("actor-1", token_file=token)
    actor, bot = await new_actor(learner_address=f"127.0.0.1:{port}", learner_access=access)
    turn = await bot.act((await bot.start("d1")).token)
    await eventually(lambda: "the learner refuses this actor: /turnwise.v1.Training/App" in caplog.text)
    assert (await bot.feedback(turn, reward=1.0)).settled == pb.Receipt.SPOOLED
    assert not learner.facts
    shutil.copy(tmp_path / "act", token)
    await eventually(lambda: len(learner.facts) == 3)
    assert caplog.text.count("the learner refuses this actor") == 1
    assert await actor.stop()
    await server.stop(0)


async def test_a_link_takes_up_renewed_certificates(
    new_actor: ActorFactory, authority: Authority, tmp_path: Path
) -> None:
    actor, _ = await new_actor(access=authority.server(mutual=True))
    pair = Authority(tmp_path / "other").issue("web", "frontend", file="mine")
    link = Link(actor.address, ClientAccess(ca=authority.file, certificate=pair.certificate, key=pair.key))
    assert (await code_of(Frontend(link.channel()).start()))[0] == "UNAVAILABLE"
    good = authority.issue("web", "frontend")
    shutil.copy(good.certificate, pair.certificate)
    assert (await code_of(Frontend(link.channel()).start()))[0] == "UNAVAILABLE", "its key is not there yet"
    shutil.copy(good.key, pair.key)
    assert (await Frontend(link.channel()).start()).token
    await link.close()


async def test_a_server_may_be_called_at_an_address_that_its_certificate_does_not_name(
    new_actor: ActorFactory, authority: Authority
) -> None:
    actor, _ = await new_actor(access=authority.server(mutual=True), listen_address="127.0.0.2:0")
    access = authority.client("web", "frontend")
    link = Link(actor.address, access)
    assert (await code_of(Frontend(link.channel()).start()))[0] == "UNAVAILABLE"
    named = Link(actor.address, replace(access, server_name="localhost"))
    assert (await Frontend(named.channel()).start()).token
    await asyncio.gather(link.close(), named.close())
