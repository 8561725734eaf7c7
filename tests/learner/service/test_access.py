"""Who may call the learner, over what."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from tests.authority import Authority
from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.access.client_access import LOCAL_TOKEN, ClientAccess, Link
from turnwise_actor.access.credentials import add_credential, revoke_credentials
from turnwise_actor.access.server_access import AccessError, ServerAccess
from turnwise_learner.service.config import ServiceConfig
from turnwise_learner.service.server import Service, running

OPERATOR_CALLS = {
    "GetStatus": training_pb2.GetStatusRequest(),
    "WatchStatus": training_pb2.GetStatusRequest(),
    "SaveCheckpoint": training_pb2.SaveCheckpointRequest(),
    "ListVersions": training_pb2.ListVersionsRequest(),
    "Rollback": training_pb2.RollbackRequest(),
    "Pause": training_pb2.PauseRequest(),
    "Resume": training_pb2.ResumeRequest(),
    "SetExploration": training_pb2.SetExplorationRequest(),
}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    file = tmp_path / "credentials.json"
    for role in ("frontend", "teacher", "actor", "operator"):
        (tmp_path / role).write_text(add_credential(file, role, [role]))
    return file


@pytest.fixture
async def guarded(config: ServiceConfig, authority: Authority, credentials: Path) -> AsyncIterator[Service]:
    """A service over TLS that wants bearer credentials."""
    access = authority.server(credentials=credentials)
    async with running(replace(config, access=access)) as service:
        yield service


async def call(address: str, access: ClientAccess, service: str, method: str, request: Any) -> str:
    """The first reply's type, or the code and message of the refusal. A stream of requests sends none."""
    link = Link(address, access, [("grpc.use_local_subchannel_pool", 1)])
    stub = getattr(training_pb2_grpc, f"{service}Stub")(link.channel())
    try:
        answering = getattr(stub, method)(request, metadata=link.metadata(), timeout=5)
        if hasattr(answering, "read"):
            return type(await answering.read()).__name__
        return type(await answering).__name__
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    finally:
        await link.close()


async def status(address: str, access: ClientAccess) -> str:
    return await call(address, access, "Operator", "GetStatus", OPERATOR_CALLS["GetStatus"])


async def test_plain_text_and_other_cas_get_nothing(
    guarded: Service, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other")
    for access in (ClientAccess(), stranger.client()):
        bearer = replace(access, token_file=tmp_path / "operator")
        assert (await status(guarded.address, bearer)).startswith("UNAVAILABLE")
    assert (
        await status(guarded.address, authority.client(token_file=tmp_path / "operator")) == "LearnerStatus"
    )


@pytest.mark.parametrize("role", ["frontend", "teacher", "actor"])
async def test_only_operators_make_operator_calls(
    guarded: Service, authority: Authority, tmp_path: Path, role: str
) -> None:
    access = authority.client(token_file=tmp_path / role)
    for method, request in OPERATOR_CALLS.items():
        told = await call(guarded.address, access, "Operator", method, request)
        assert told == (
            f"PERMISSION_DENIED: /turnwise.v1.Operator/{method} is for operator; {role} has the role {role}"
        )


@pytest.mark.parametrize("role", ["frontend", "teacher", "operator"])
async def test_only_actors_bring_facts_and_get_policies(
    guarded: Service, authority: Authority, tmp_path: Path, role: str
) -> None:
    access = authority.client(token_file=tmp_path / role)
    watch = training_pb2.WatchPolicyRequest()
    for method, request in (("WatchPolicy", watch), ("AppendFacts", None)):
        told = await call(guarded.address, access, "Training", method, request)
        assert told.startswith("PERMISSION_DENIED"), told
        assert "is for actor" in told


@pytest.mark.parametrize("role", ["frontend", "teacher", "operator"])
async def test_who_talks_to_actors_may_ask_where_they_are(
    guarded: Service, authority: Authority, tmp_path: Path, role: str
) -> None:
    access = authority.client(token_file=tmp_path / role)
    request = training_pb2.WatchActorsRequest()
    assert await call(guarded.address, access, "Registry", "WatchActors", request) == "ActorList"


async def test_an_actor_has_no_business_with_the_others(
    guarded: Service, authority: Authority, tmp_path: Path
) -> None:
    request = training_pb2.WatchActorsRequest()
    access = authority.client(token_file=tmp_path / "actor")
    told = await call(guarded.address, access, "Registry", "WatchActors", request)
    assert told == (
        "PERMISSION_DENIED: /turnwise.v1.Registry/WatchActors is for frontend or operator or teacher; "
        "actor has the role actor"
    )
    nobody = await call(guarded.address, authority.client(), "Registry", "WatchActors", request)
    assert nobody.startswith("UNAUTHENTICATED")


async def test_without_a_token_nothing_is_answered(guarded: Service, authority: Authority) -> None:
    told = await status(guarded.address, authority.client())
    assert told.startswith("UNAUTHENTICATED: /turnwise.v1.Operator/GetStatus: got none")


async def test_mutual_tls_wants_a_certificate_of_the_ca(config: ServiceConfig, authority: Authority) -> None:
    async with running(replace(config, access=authority.server(mutual=True))) as service:
        assert (await status(service.address, authority.client())).startswith("UNAVAILABLE")
        assert await status(service.address, authority.client("ann", "operator")) == "LearnerStatus"
        told = await status(service.address, authority.client("web", "frontend"))
        assert told.startswith("PERMISSION_DENIED")


async def test_a_revoked_actors_stream_ends_and_its_facts_stay_out(
    guarded: Service, authority: Authority, credentials: Path, tmp_path: Path, make_facts: Any
) -> None:
    link = Link(guarded.address, authority.client(token_file=tmp_path / "actor"))
    stub: Any = training_pb2_grpc.TrainingStub(link.channel())
    stream = stub.AppendFacts(metadata=link.metadata())
    await stream.write(training_pb2.FactBatch(sequence=1, facts=make_facts("a", 1)))
    assert (await stream.read()).cursor == 2
    revoke_credentials(credentials, "actor")
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(stream.read(), 10)
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
    access = authority.client(token_file=tmp_path / "actor")
    again = await call(guarded.address, access, "Training", "AppendFacts", None)
    assert again.startswith("UNAUTHENTICATED")
    assert guarded.journal.last_cursor == 2
    await link.close()


async def test_the_local_door_opens_for_its_token_alone(
    guarded: Service, config: ServiceConfig, attach: Any, tmp_path: Path
) -> None:
    token = config.data / LOCAL_TOKEN
    assert token.stat().st_mode & 0o777 == 0o600
    assert await status(guarded.local_address, ClientAccess(token_file=token)) == "LearnerStatus"
    assert (config.data / "learner.local").read_text() == guarded.local_address
    for access in (ClientAccess(), ClientAccess(token_file=tmp_path / "operator")):
        assert (await status(guarded.local_address, access)).startswith("UNAUTHENTICATED")
    async with attach(guarded) as trainer:
        assert trainer.welcome.generation == 1


async def test_the_trainers_service_is_not_at_the_address_of_the_others(
    service: Service, config: ServiceConfig
) -> None:
    access = ClientAccess(token_file=config.data / LOCAL_TOKEN)
    told = await call(service.address, access, "Trainer", "Attach", None)
    assert told.startswith("UNIMPLEMENTED")


async def test_a_token_of_an_earlier_start_does_not_open_the_local_door(
    config: ServiceConfig, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    async with running(config) as service:
        old.write_text((config.data / LOCAL_TOKEN).read_text())
        assert await status(service.local_address, ClientAccess(token_file=old)) == "LearnerStatus"
    async with running(config) as service:
        assert (await status(service.local_address, ClientAccess(token_file=old))).startswith(
            "UNAUTHENTICATED"
        )


def test_an_address_that_others_reach_wants_tls_and_a_credential(
    config: ServiceConfig, authority: Authority
) -> None:
    with pytest.raises(AccessError, match=r"0\.0\.0\.0:0 can be reached from other machines"):
        replace(config, listen="0.0.0.0:0")
    replace(config, listen="0.0.0.0:0", access=ServerAccess(insecure=True))
    replace(config, listen="0.0.0.0:0", access=authority.server(mutual=True))
    with pytest.raises(ValueError, match=r"local_listen: got '0\.0\.0\.0:0', wanted a loopback address"):
        replace(config, local_listen="0.0.0.0:0")
