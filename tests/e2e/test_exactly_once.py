"""What the model in tests/model plays through, over real processes: once each, and the ledger balances."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

import turnwise
from tests.e2e.deployment import DOMAIN, journal_rows, kill, status
from tests.waiting import eventually
from turnwise.v1 import dialogue_pb2 as pb
from turnwise.v1.dialogue_pb2_grpc import DialogueStub
from turnwise_actor.policy import Domain
from turnwise_actor.tokens import KeyRing, Tokens
from turnwise_cli.verbs import cli
from turnwise_deploy.data_folder import DataFolder
from turnwise_deploy.local import LocalDeployment
from turnwise_learner.journal import DECIDED, ENDED, FEEDBACK

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def bot(up: LocalDeployment) -> Iterator[turnwise.Client]:
    with turnwise.Client(list(up.actors)) as client:
        yield client


@pytest.fixture(scope="module")
def stubs(up: LocalDeployment) -> Iterator[list[Any]]:
    """One stub an actor: a client that does by hand what the SDK does by itself."""
    channels = [grpc.insecure_channel(address) for address in up.actors]
    yield [DialogueStub(channel) for channel in channels]
    for channel in channels:
        channel.close()


def act(stub: Any, token: bytes, text: str, request_id: str) -> pb.Turn:
    request = pb.ActRequest(token=token, request_id=request_id, observation=pb.Observation(text=text))
    return stub.Act(request, timeout=10, wait_for_ready=True)


def start(stub: Any, dialogue_id: str) -> bytes:
    request = pb.StartDialogueRequest(dialogue_id=dialogue_id, user="ann")
    return stub.StartDialogue(request, timeout=10, wait_for_ready=True).token


def reward(stub: Any, turn: pb.Turn, feedback_id: str, value: float = 1.0, **more: Any) -> pb.Receipt:
    request = pb.FeedbackRequest(
        dialogue_id=turn.dialogue_id,
        decision_id=turn.decision_id,
        feedback_id=feedback_id,
        reward=value,
        **more,
    )
    return stub.GiveFeedback(request, timeout=10, wait_for_ready=True)


def journaled(data: Path, dialogue_id: str, kind: int) -> Counter[str]:
    """Keys of a dialogue's facts."""
    return Counter(
        row.fact.key for row in journal_rows(data) if row.kind == kind and row.dialogue_id == dialogue_id
    )


def test_a_double_submit_is_one_turn(stubs: list[Any], data: Path) -> None:
    token = start(stubs[0], "double")
    turns = [act(stub, token, "hello", "same") for stub in (stubs[0], stubs[1], stubs[0])]
    assert len({(turn.decision_id, turn.action) for turn in turns}) == 1
    for stub in stubs:
        assert reward(stub, turns[1], "double-1", token=turns[1].token).settled == pb.Receipt.LEARNER
    assert journaled(data, "double", DECIDED) == {f"d:{turns[0].decision_id}": 1}
    assert journaled(data, "double", FEEDBACK) == {"f:double-1": 1}


def test_two_tabs_on_one_dialogue_are_two_branches(
    bot: turnwise.Client, up: LocalDeployment, data: Path
) -> None:
    with bot.dialogue(id="tabs", user="ann") as talk, turnwise.Client(up.actors[1]) as second:
        first = talk.act(text="hello")
        other = second.resume(talk.token)
        here, there = talk.act(text="a pizza"), other.act(text="a salad")
        for turn in (first, here, there):
            assert turn.reward(1).settled == "LEARNER"
        assert (here.index, there.index) == (1, 1)
        decided = {
            row.fact.decided.decision_id: row.fact.decided for row in journal_rows(data) if row.kind == 2
        }
        assert {decided[turn.decision_id].parent_id for turn in (here, there)} == {first.decision_id}
    eventually(lambda: status(up.learner).trainer.counters["forks"] == 1)


def test_an_old_token_goes_on_a_day_later_as_a_linked_dialogue(
    bot: turnwise.Client, stubs: list[Any], data: Path
) -> None:
    token = start(stubs[0], "yesterday")
    last = act(stubs[0], token, "hello", "r1")
    domain = Domain.load(DOMAIN)
    tokens = Tokens(KeyRing(DataFolder(data).keys, domain.name), domain.name)
    opened = tokens.open(last.token)
    opened.state.issued_ms -= 86_400_000
    old = tokens.seal("yesterday", opened.state)
    turns = [act(stub, old, "back again", "r2") for stub in stubs]
    assert {turn.dialogue_id for turn in turns} == {turns[0].dialogue_id}
    assert turns[0].dialogue_id != "yesterday"
    assert reward(stubs[1], turns[0], "old-1", token=turns[0].token).settled == pb.Receipt.LEARNER
    assert reward(stubs[1], last, "old-2").settled == pb.Receipt.LEARNER
    # One decision, or one a policy version.
    eventually(
        lambda: (
            journaled(data, turns[0].dialogue_id, DECIDED) == {f"d:{turn.decision_id}": 1 for turn in turns}
        )
    )
    eventually(lambda: journaled(data, "yesterday", DECIDED) == {f"d:{last.decision_id}": 1})


def test_a_turn_whose_actor_died_unheard_is_had_from_another(
    up: LocalDeployment, stubs: list[Any], data: Path
) -> None:
    token = start(stubs[0], "died")
    unheard = act(stubs[0], token, "hello", "r1")
    gone = up.pids()[up.actors[0]]
    kill(gone)
    turn = act(stubs[1], token, "hello", "r1")
    after = act(stubs[1], turn.token, "and then", "r2")
    assert reward(stubs[1], after, "died-1", token=after.token).settled == pb.Receipt.LEARNER
    keys = journaled(data, "died", DECIDED)
    heard = {f"d:{turn.decision_id}", f"d:{after.decision_id}"}
    assert heard <= set(keys) <= heard | {f"d:{unheard.decision_id}"}
    assert set(keys.values()) == {1}
    eventually(lambda: up.pids()[up.actors[0]] not in (None, gone))
    up.wait_ready()


def test_what_is_said_while_the_learner_is_away_is_there_once_and_the_ledger_balances(
    up: LocalDeployment, stubs: list[Any], bot: turnwise.Client, data: Path
) -> None:
    """Feedback that overtakes its decision, a changed mind at two actors, and an end."""
    epoch = status(up.learner).epoch
    token = start(stubs[0], "away")
    with bot.dialogue(id="ended away", user="ann") as talk:
        talk.act(text="hello")
        kill(up.pids()[up.learner])
        turn = act(stubs[0], token, "hello", "r1")
        # Without the token, at the other actor: the decision itself is still with the first one.
        reward(stubs[1], turn, "away-1", 1.0, revision=1)
        reward(stubs[0], turn, "away-2", -1.0, revision=2)
        talk.end("success", reward=1.0)
    eventually(lambda: status(up.learner).epoch > epoch)
    eventually(lambda: len(journaled(data, "away", FEEDBACK)) == 2)
    eventually(lambda: journaled(data, "ended away", ENDED))
    eventually(lambda: journaled(data, "away", DECIDED) == {f"d:{turn.decision_id}": 1})
    eventually(lambda: status(up.learner).trainer_alive)
    books = eventually(lambda: balanced(data))
    assert books["trainer"]["source"] == "the running trainer"
    facts = journal_rows(data)
    assert books["counts"]["decided"] == sum(row.kind == DECIDED for row in facts)
    assert books["counts"]["superseded"] == 1
    assert books["not_learnable"] == {"whole dialogue at gamma 0": 1}


def balanced(data: Path) -> dict[str, Any]:
    """What `turnwise ledger` says once it closes over all that is in the journal; empty before."""
    ran = CliRunner().invoke(cli, ["ledger", "--data", str(data), "--json"])
    books = json.loads(ran.output)
    through = books["trainer"] and books["trainer"]["cursor"]
    return books if ran.exit_code == 0 and through == journal_rows(data)[-1].seq else {}
