"""How a client finds actors: the forms of an address, what sources tell, names. No learner is needed here."""

import asyncio
import socket
import threading
import time
from typing import Any

import pytest

import turnwise
from tests.client.test_routing import World
from tests.client.test_surface import python
from tests.waiting import eventually
from turnwise import _discovery
from turnwise._channels import Connection, Source
from turnwise._directory import LINGER_S, Directory
from turnwise.testing import FakeActor

A, B, C = (f"10.0.0.{number}:50051" for number in (1, 2, 3))
NAME, LEARNER = "dns:///bot.example:50051", "learner://learner.example:50050"


@pytest.mark.parametrize("twin", [turnwise.Client, turnwise.AsyncClient])
@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("dns:///bot.example", "'dns:///name:port', with a port"),
        ("dns:///:50051", "'dns:///name:port'"),
        ("dns:///bot.example:0", "'dns:///name:port'"),
        ("learner://", "'learner://host:port'"),
        ("learner://localhost", "'learner://host:port', with a port"),
        ("learner:///localhost:50050", "'learner://host:port'"),
        ("learner://a:50050,b:50050", "'learner://host:port'"),
        ("learner:localhost:50050/", "'host:port', 'dns:///name:port' or 'learner://host:port'"),
        ("http://localhost:50051", "'host:port', 'dns:///name:port' or 'learner://host:port'"),
        (["localhost:50051", "dns:///x"], "'dns:///name:port'"),
        ([], "or a list of them"),
        (7, "'host:port'"),
    ],
)
def test_a_malformed_address_is_refused_with_what_is_wanted(twin: Any, address: Any, wanted: str) -> None:
    if address == 7:
        address = [7]
    with pytest.raises(turnwise.InvalidRequest) as refused:
        twin(address)
    (violation,) = refused.value.violations
    got = next((each for each in address if each != "localhost:50051"), address)
    shown = repr(got if isinstance(address, list) else address)
    assert violation.field == "address"
    assert violation.description.startswith(f"got {shown}; wanted ")
    assert wanted in violation.description


@pytest.mark.parametrize("address", [NAME, LEARNER])
def test_credentials_go_neither_to_a_name_nor_to_a_learner_elsewhere_in_plain_text(address: str) -> None:
    host = address.rpartition("/")[2]
    with pytest.raises(turnwise.InvalidRequest, match=f"tls: got None; .* credentials go to {host}"):
        turnwise.Client(["localhost:50051", address], credentials="secret")


class Listed(World):
    """A router whose addresses come from sources."""

    def __init__(self, *addresses: str, **more: Any) -> None:
        super().__init__()
        self.connection = Connection.of(addresses, more.get("credentials"), more.get("tls"))
        self.directory = Directory(self.connection, self.router, lambda: self.now)
        self.router.set_addresses(self.connection.targets)
        self.sources = self.connection.sources

    def say(self, *addresses: str, leaving: tuple[str, ...] = (), source: int = 0) -> None:
        self.directory.listed(self.sources[source], addresses, leaving)

    def addresses(self) -> list[str]:
        return [address.target for address in self.router._addresses]


def test_what_is_listed_is_used_at_once_beside_what_was_given() -> None:
    world = Listed(A, LEARNER)
    assert world.addresses() == [A]
    world.say(B, C)
    assert world.addresses() == [A, B, C]
    world.say(A, B, C)
    assert world.addresses() == [A, B, C]


def test_an_actor_that_leaves_goes_at_once() -> None:
    world = Listed(LEARNER)
    world.say(A, B)
    world.say(B, leaving=(A,))
    assert world.addresses() == [B]


def test_an_actor_that_is_lost_without_a_word_lingers() -> None:
    world = Listed(LEARNER)
    world.say(A, B)
    world.say(B)
    world.advance(LINGER_S - 1)
    assert sorted(world.addresses()) == [A, B]
    world.advance(1)
    assert world.addresses() == [B]


def test_an_actor_that_is_listed_again_in_time_stays() -> None:
    world = Listed(LEARNER)
    world.say(A, B)
    world.say(B)
    world.advance(LINGER_S - 1)
    world.say(A, B)
    world.advance(LINGER_S)
    assert sorted(world.addresses()) == [A, B]
    world.say(A)
    world.advance(LINGER_S - 1)
    assert sorted(world.addresses()) == [A, B]


def test_an_empty_list_changes_nothing_however_long_it_stays_empty() -> None:
    world = Listed(LEARNER)
    world.say(A, B)
    world.say()
    world.advance(10 * LINGER_S)
    assert world.addresses() == [A, B]
    world.say(leaving=(A, B))
    assert world.addresses() == [A, B]


def test_after_an_empty_list_the_others_have_their_time_to_come_back() -> None:
    world = Listed(LEARNER)
    world.say(A, B, C)
    world.say()
    world.advance(2 * LINGER_S)
    world.say(A)
    world.advance(LINGER_S / 2)
    world.say(A, B)
    world.advance(LINGER_S / 2)
    assert world.addresses() == [A, B]


@pytest.mark.parametrize("how", ["empty", "away"])
def test_who_is_lost_just_before_the_list_is_does_not_go(how: str) -> None:
    world = Listed(LEARNER)
    world.say(A, B)
    world.say(B)
    world.advance(LINGER_S / 2)
    if how == "empty":
        world.say()
    else:
        world.directory.failed(world.sources[0], turnwise.ActorUnavailable("away"))
    world.advance(10 * LINGER_S)
    assert sorted(world.addresses()) == [A, B]
    world.say(B)
    world.advance(LINGER_S)
    assert world.addresses() == [B]


def test_a_list_that_cannot_be_had_changes_nothing() -> None:
    world = Listed(LEARNER)
    world.say(A, B)
    for error in (turnwise.ActorUnavailable("away"), turnwise.AccessDenied("revoked")):
        world.directory.failed(world.sources[0], error)
    world.advance(10 * LINGER_S)
    assert world.addresses() == [A, B]


def test_an_outage_of_a_source_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world = Listed(LEARNER)
    for _ in range(2):
        world.say(A)
        for _ in range(3):
            world.directory.failed(world.sources[0], turnwise.ActorUnavailable("away"))
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"{LEARNER}: away; its last list of actors stays in use"] * 2


def test_an_address_goes_when_no_source_lists_it_any_more() -> None:
    world = Listed(LEARNER, NAME)
    world.say(A, B)
    world.say(B, C, source=1)
    world.say(A, leaving=(B,))
    assert set(world.addresses()) == {A, B, C}
    world.say(C, source=1)
    world.advance(LINGER_S)
    assert set(world.addresses()) == {A, C}


def test_a_learner_names_its_own_machine_with_a_wildcard() -> None:
    world = Listed(LEARNER)
    world.say("0.0.0.0:50051", "[::]:50052", A)
    assert world.addresses() == ["learner.example:50051", "learner.example:50052", A]
    world.say(A, leaving=("0.0.0.0:50051",))
    assert sorted(world.addresses()) == [A, "learner.example:50052"]


def test_what_a_source_lists_is_checked() -> None:
    world = Listed(LEARNER)
    world.say("unix:/tmp/x", "nonsense", "a:0", B)
    assert world.addresses() == [B]


def test_credentials_go_to_no_other_machine_that_a_learner_here_lists() -> None:
    world = Listed("learner://127.0.0.1:50050", credentials="secret")
    call = world.submit()
    world.say(A)
    assert isinstance(world.outcomes[call], turnwise.InvalidRequest)
    assert f"credentials go to {A}" in str(world.outcomes[call])
    world.say(A, "127.0.0.1:50051")
    assert world.addresses() == ["127.0.0.1:50051"]


def test_only_what_was_found_by_name_is_known_by_that_name() -> None:
    world = Listed(A, NAME, LEARNER)
    world.say(A, B)
    world.say(C, source=1)
    options = [dict(world.connection.options(each)) for each in (A, B, C)]
    names = [each.get("grpc.default_authority") for each in options]
    assert names == [None, "bot.example:50051", None]


@pytest.mark.parametrize("error", [turnwise.AccessDenied, turnwise.NotSupported])
def test_a_refusal_fails_calls_at_once_unless_another_source_may_still_answer(error: Any) -> None:
    alone = Listed(LEARNER)
    call = alone.submit()
    alone.directory.failed(alone.sources[0], error("no"))
    assert isinstance(alone.outcomes[call], error)
    assert LEARNER in str(alone.outcomes[call])
    both = Listed(LEARNER, NAME)
    call = both.submit(timeout_s=5)
    both.directory.failed(both.sources[0], error("no"))
    assert both.outcomes == {}
    both.say(A, source=1)
    both.answer()
    assert both.outcomes[call].action == "greet"


def test_who_finds_no_actor_in_time_is_told_what_each_kind_of_source_said() -> None:
    told = {
        "has not answered yet": lambda world: None,
        "away": lambda world: world.directory.failed(world.sources[0], turnwise.ServerFault("away")),
        "lists no actor": lambda world: world.say(),
    }
    for words, happens in told.items():
        world = Listed(LEARNER)
        happens(world)
        call = world.submit(timeout_s=1)
        world.advance(1)
        assert isinstance(world.outcomes[call], turnwise.ActorUnavailable), words
        assert f"{LEARNER}" in str(world.outcomes[call])
        assert words in str(world.outcomes[call])


class Names:
    """A name server of the test's own."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked: list[tuple[str, int]] = []
        self.answering = threading.Event()
        self.answering.set()

    def look_up(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        self.answering.wait(30)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.addresses


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Any:
    names = Names()
    monkeypatch.setattr(_discovery, "look_up", names.look_up)
    monkeypatch.setattr(_discovery, "LOOK_AT_MOST_EVERY_S", 0.05)
    yield names
    names.answering.set()


def test_every_record_of_a_name_is_an_actor(names: Names) -> None:
    with FakeActor() as first, FakeActor() as second:
        names.addresses = [first.address, second.address]
        with turnwise.Client(NAME) as bot:
            talk = bot.dialogue()
            for _ in range(8):
                talk.act()
        assert min(len(first.received), len(second.received)) > 1
    assert set(names.asked) == {("bot.example", 50051)}


async def test_the_asyncio_client_finds_them_too(names: Names) -> None:
    with FakeActor() as first, FakeActor() as second:
        names.addresses = [first.address]
        async with turnwise.AsyncClient([NAME, second.address]) as bot:
            talk = bot.dialogue()
            while not (first.received and second.received):
                await talk.act()


def test_a_name_is_looked_up_again_when_an_actor_is_unavailable(names: Names) -> None:
    with FakeActor() as first, FakeActor() as second:
        names.addresses = [first.address]
        with turnwise.Client(NAME) as bot:
            talk = bot.dialogue()
            talk.act()
            names.addresses = [second.address]
            first.stop()
            assert talk.act().index == 1
        assert len(second.received) == 1


def test_a_name_is_looked_up_again_and_again(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_discovery, "LOOK_EVERY_S", 0.1)
    with FakeActor() as first, FakeActor() as second:
        names.addresses = [first.address]
        with turnwise.Client(NAME) as bot:
            talk = bot.dialogue()
            talk.act()
            names.addresses = [first.address, second.address]
            eventually(lambda: talk.act() and second.received)


def test_a_look_up_that_fails_later_changes_nothing(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_discovery, "LOOK_EVERY_S", 0.1)
    with FakeActor() as actor, turnwise.Client(NAME) as bot:
        names.addresses = [actor.address]
        bot.dialogue().act()
        names.addresses = []
        asked = len(names.asked)
        eventually(lambda: len(names.asked) > asked + 1)
        bot.dialogue().act()


def test_a_name_that_is_unknown_is_named_in_time(names: Names) -> None:
    with turnwise.Client(NAME, timeout=0.3) as bot:
        begun = time.monotonic()
        with pytest.raises(turnwise.ActorUnavailable, match=r"dns:///bot.example:50051: .*not known"):
            bot.dialogue().act()
        assert time.monotonic() - begun < 5


def test_a_name_server_that_hangs_holds_up_no_caller(names: Names) -> None:
    names.answering.clear()
    begun = time.monotonic()
    in_vain = pytest.raises(turnwise.ActorUnavailable, match="has not answered yet")
    with turnwise.Client(NAME, timeout=0.3) as bot, in_vain:
        bot.dialogue().act()
    assert time.monotonic() - begun < 5


async def test_a_name_server_that_hangs_holds_up_no_event_loop(names: Names) -> None:
    names.answering.clear()
    with FakeActor() as actor:
        async with turnwise.AsyncClient([NAME, actor.address]) as bot:
            assert (await bot.dialogue().act()).index == 0
            waiting = asyncio.ensure_future(turnwise.AsyncClient(NAME, timeout=0.3).domain())
            for _ in range(10):
                assert (await bot.dialogue().act()).index == 0
            with pytest.raises(turnwise.ActorUnavailable):
                await waiting


def test_no_thread_of_discovery_is_left_when_a_client_is_closed_or_dropped(names: Names) -> None:
    def running() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name.startswith("turnwise")]

    with FakeActor() as actor:
        names.addresses = [actor.address]
        learner = f"learner://{actor.address}"
        with turnwise.Client([NAME, learner]) as bot:
            bot.dialogue().act()
            assert running().count("turnwise-discovery") == 2
        eventually(lambda: not running())
        dropped = turnwise.Client([NAME, learner])
        dropped.dialogue().act()
        del dropped
        eventually(lambda: not running())


def test_a_loop_that_ends_without_close_ends_its_discovery(names: Names) -> None:
    with FakeActor() as actor:
        names.addresses = [actor.address]
        bot = turnwise.AsyncClient(NAME)

        async def one_turn() -> None:
            await bot.dialogue().act()
            await bot._engine._wire.close()

        asyncio.run(one_turn())
        bot._engine._discovery._look_again()
        eventually(lambda: "turnwise-discovery" not in [each.name for each in threading.enumerate()])


def test_an_actor_is_no_learner(names: Names) -> None:
    with FakeActor() as actor, turnwise.Client(f"learner://{actor.address}") as bot:
        begun = time.monotonic()
        with pytest.raises(turnwise.NotSupported, match=f"learner://{actor.address}"):
            bot.domain()
        assert time.monotonic() - begun < 5


def test_names_of_this_machine_are_found() -> None:
    assert "127.0.0.1:50051" in _discovery.look_up("localhost", 50051)
    assert _discovery.look_up("::1", 50051) == ["[::1]:50051"]
    for host in ("a" * 64 + ".example", "a..example"):
        with pytest.raises(OSError, match=r"."):
            _discovery.look_up(host, 50051)


def test_who_names_no_learner_loads_nothing_of_the_learners() -> None:
    code = """
import sys, turnwise
with turnwise.Client(sys.argv[1]) as bot:
    bot.dialogue().act()
print(*sys.modules)
"""
    with FakeActor() as actor:
        loaded = python(code, actor.address).stdout.split()
    assert "turnwise.v1.dialogue_pb2" in loaded
    assert "turnwise.v1.training_pb2" not in loaded


def test_a_source_is_written_as_it_was_given() -> None:
    assert [str(each) for each in Connection.of([NAME, LEARNER], None, None).sources] == [NAME, LEARNER]
    assert Connection.of([NAME, NAME], None, None).sources == (Source("dns:///", "bot.example:50051"),)
