"""A deployment over TLS that asks who calls, used as its users would; and what it writes down of them."""

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

import turnwise
from tests.authority import Authority
from tests.e2e.deployment import DOMAIN, journal_rows
from tests.waiting import eventually
from turnwise.v1 import dialogue_pb2, dialogue_pb2_grpc
from turnwise_actor.access.client_access import LOCAL_TOKEN, ClientAccess
from turnwise_cli.verbs import cli
from turnwise_deploy.local import LocalConfig, LocalDeployment

pytestmark = pytest.mark.timeout(240)

SAID = "my secret words nobody may read"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secured")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder / "ca")


@pytest.fixture(scope="module")
def up(folder: Path, authority: Authority) -> Iterator[LocalDeployment]:
    data = folder / "data"
    for name, role in (("web", "frontend"), ("tom", "teacher"), ("ops", "operator")):
        added = turnwise_command("credential", "add", name, "--role", role, "--data", data)
        (folder / name).write_text(added.stdout)
    arguments = ("--log-level", "debug")
    config = LocalConfig(
        domain=DOMAIN,
        data=data,
        actors=2,
        port=0,
        learner_port=0,
        access=authority.server(),
        learner_arguments=arguments,
        actor_arguments=arguments,
    )
    with LocalDeployment(config) as deployment:
        yield deployment


@pytest.fixture
def client(up: LocalDeployment, folder: Path, authority: Authority) -> Callable[..., turnwise.Client]:
    def client(name: str) -> turnwise.Client:
        access = ClientAccess(ca=authority.file, token_file=folder / name)
        return turnwise.Client(list(up.actors), access.token, access.channel_credentials())

    return client


def turnwise_command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def test_people_teach_over_tls_and_the_bot_learns(client: Callable[..., turnwise.Client]) -> None:
    with client("web") as bot:
        with bot.dialogue(user="ann") as talk:
            turn = talk.act(text="which sizes do you have")
            learned = turn.correct("ask_size")
            assert learned.settled == "LEARNER"

        def answers() -> bool:
            with bot.dialogue(mode="evaluate") as probe:
                turn = probe.act(text="which sizes do you have")
                return turn.learned_through >= learned.journal_cursor and turn.action == "ask_size"

        eventually(answers)


def test_a_teacher_rates_in_its_own_name_alone(
    up: LocalDeployment, client: Callable[..., turnwise.Client]
) -> None:
    with client("web") as bot, bot.dialogue("rated", user="ann") as talk:
        turn = talk.act(text="hello")
    with client("tom") as tom:
        tom.feedback("rated", turn.decision_id, reward=1.0)
        with pytest.raises(turnwise.AccessDenied, match="only frontends name others"):
            tom.feedback("rated", turn.decision_id, reward=-1.0, teacher="ann")
    rows = [row.fact for row in journal_rows(up.folder.path) if row.dialogue_id == "rated"]
    assert [fact.feedback.teacher for fact in rows if fact.HasField("feedback")] == ["tom"]


def test_operators_are_let_in_and_frontends_are_not(
    up: LocalDeployment, folder: Path, authority: Authority
) -> None:
    named = ("status", "--json", "--learner", up.learner)
    over_tls = (*named, "--ca", authority.file)
    assert turnwise_command(*over_tls, "--token-file", folder / "ops").exit_code == 0
    for options, told in (
        ((*over_tls, "--token-file", folder / "web"), "is for operator; web has the role frontend"),
        (over_tls, "got none; wanted the bearer token or certificate"),
        (named, "does not answer"),
    ):
        refused = turnwise_command(*options)
        assert refused.exit_code == 1
        assert told in refused.output


def test_who_owns_the_data_folder_needs_nothing_else(up: LocalDeployment) -> None:
    shown = turnwise_command("status", "--data", up.folder.path)
    assert shown.exit_code == 0, shown.output
    assert up.learner in shown.output
    assert all(actor in shown.output for actor in up.actors)


def test_chat_and_simulate_bring_what_they_are_given(
    up: LocalDeployment, folder: Path, authority: Authority
) -> None:
    access = ("--ca", authority.file, "--token-file", folder / "web")
    said = CliRunner().invoke(cli, ["chat", up.actors[0], *map(str, access)], input="hello\n+\n")
    assert said.exit_code == 0, said.output
    ran = turnwise_command("simulate", *up.actors, *access, "--dialogues", "3", "--mode", "evaluate")
    assert ran.exit_code == 0, ran.output


def test_no_log_has_words_tokens_or_credentials(
    up: LocalDeployment, folder: Path, authority: Authority, client: Callable[..., turnwise.Client]
) -> None:
    with client("web") as bot:
        with bot.dialogue("d-logged", user="ann-the-secret-user") as talk:
            turn = talk.act(text=SAID)
            turn.reward(1.0, comment=SAID)
            token = talk.token
            with pytest.raises(turnwise.InvalidRequest):
                talk.act(text=SAID, slots={SAID: 1.0})
            with pytest.raises(turnwise.InvalidRequest):
                bot.feedback("d-logged", turn.decision_id, correction=SAID)
        forged = bot.resume(token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB"))
        with pytest.raises(turnwise.TokenRejected):
            forged.act(text=SAID)
    for wrong in ("tw_a-wrong-credential", (folder / "ops").read_text().strip()):
        with (
            turnwise.Client(list(up.actors), wrong, authority.file) as bot,
            pytest.raises(turnwise.AccessDenied),
        ):
            bot.dialogue().act(text=SAID)
    secrets = {name: (folder / name).read_text().strip() for name in ("web", "tom", "ops")}
    secrets |= {
        "local": (up.folder.path / LOCAL_TOKEN).read_text().strip(),
        "wrong": "tw_a-wrong-credential",
        "words": SAID,
        "user": "ann-the-secret-user",
        "token": token[-40:],
        "token bytes": wire_bytes(token).hex()[-40:],
        "keys": up.folder.keys.read_text()[-60:-3],
    }
    logs = {file: file.read_bytes() for file in up.folder.logs.rglob("*") if file.is_file()}
    assert {file.name.partition("-")[0] for file in logs} >= {"learner.log", "trainer.log", "actor"}
    assert any(b"refused" in log for log in logs.values()), "refusals are told"
    for file, log in logs.items():
        found = [name for name, secret in secrets.items() if secret.encode() in log]
        assert not found, f"{file.name} tells {found}"


def wire_bytes(token: str) -> bytes:
    """A token as it travels."""
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def test_plain_text_reaches_nobody(up: LocalDeployment) -> None:
    for address in (*up.actors, up.learner):
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
            dialogue_pb2_grpc.DialogueStub(channel).DescribeDomain(
                dialogue_pb2.DescribeDomainRequest(), timeout=5
            )
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
