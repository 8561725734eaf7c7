"""One deployment of a learner and two actors, used as its users would."""

from pathlib import Path

import pytest

import turnwise
from tests.e2e.deployment import (
    explore,
    explores,
    journal_rows,
    status,
    wait_learned,
)
from tests.waiting import eventually
from turnwise_actor.policy import ModeExploration
from turnwise_deploy.local import LocalDeployment

pytestmark = pytest.mark.timeout(180)


def test_a_corrected_answer_is_right_the_next_time(up: LocalDeployment) -> None:
    with turnwise.Client(list(up.actors)) as bot:
        with bot.dialogue(user="ann") as talk:
            turn = talk.act(text="what sizes are there")
            receipt = turn.correct("ask_size")
            assert receipt.settled == "LEARNER"
        for actor in up.actors:
            wait_learned(actor, receipt.journal_cursor)
        for _ in range(4):
            with bot.dialogue(mode="evaluate") as talk:
                assert talk.act(text="what sizes are there").action == "ask_size"


def test_a_punished_answer_is_not_given_again(up: LocalDeployment) -> None:
    with turnwise.Client(list(up.actors)) as bot:
        for _ in range(3):
            with bot.dialogue() as talk:
                turn = talk.act(text="you are closed when exactly")
                receipt = turn.reward(-1)
            for actor in up.actors:
                wait_learned(actor, receipt.journal_cursor)
            with bot.dialogue(mode="evaluate") as talk:
                assert talk.act(text="you are closed when exactly").action != turn.action


def test_two_actors_answer_alternate_turns_of_one_dialogue(up: LocalDeployment, data: Path) -> None:
    first, second = (turnwise.Client(address) for address in up.actors)
    with first, second:
        talk = first.dialogue(id="alternating", user="ann")
        decisions = []
        for index in range(6):
            turn = talk.act(text=f"word {index}")
            assert turn.index == index
            decisions.append(turn.decision_id)
            token = talk.token
            talk = (second if index % 2 == 0 else first).resume(token)
        second.feedback("alternating", decisions[-1], reward=1)
        talk.end(outcome="success")

    def facts() -> list[str]:
        rows = [row for row in journal_rows(data) if row.dialogue_id == "alternating"]
        return [str(row.fact.WhichOneof("kind")) for row in rows]

    eventually(lambda: facts().count("decided") == 6 and "ended" in facts())
    decided = [r.fact.decided for r in journal_rows(data) if r.dialogue_id == "alternating" and r.kind == 2]
    parents = {d.decision_id: d.parent_id for d in decided}
    assert [parents[decision] for decision in decisions] == ["", *decisions[:-1]]
    assert facts().count("started") == 1


def test_feedback_is_learned_once_however_often_it_is_sent(up: LocalDeployment) -> None:
    with turnwise.Client(list(up.actors)) as bot:
        with bot.dialogue() as talk:
            turn = talk.act(text="once and only once")
            receipt = turn.reward(1)
        eventually(lambda: status(up.learner).trainer.journal_cursor >= receipt.journal_cursor)
        before = status(up.learner).trainer.lessons
        last = bot.feedback(talk.id, turn.decision_id, reward=1)  # the same value: nothing new to learn
        eventually(lambda: status(up.learner).trainer.journal_cursor >= last.journal_cursor)
        assert status(up.learner).trainer.lessons == before


def test_evaluation_is_journaled_and_teaches_nothing(up: LocalDeployment) -> None:
    with turnwise.Client(list(up.actors)) as bot:
        eventually(lambda: status(up.learner).trainer.journal_cursor == status(up.learner).journal_cursor)
        eventually(lambda: status(up.learner).trainer.updates_owed == 0)
        before = status(up.learner).trainer
        with bot.dialogue(mode="evaluate") as talk:
            receipt = talk.act(text="only looking").reward(-1)
        eventually(lambda: status(up.learner).trainer.journal_cursor >= receipt.journal_cursor)
        after = status(up.learner).trainer
        assert (after.turns, after.lessons, after.updates) == (before.turns, before.lessons, before.updates)


def test_exploration_changes_while_actors_answer(up: LocalDeployment, data: Path) -> None:
    assert explore(up.learner) == "teach: greedy, epsilon 0\nserve: greedy, epsilon 0.02\n"
    assert all(explores(actor, data, ModeExploration(0.02)) for actor in up.actors)
    told = explore(up.learner, "--mode", "serve", "--kind", "softmax", "--temperature", "0.5")
    assert told == "serve: softmax at temperature 0.5, epsilon 0.02\n"
    for actor in up.actors:
        eventually(lambda actor=actor: explores(actor, data, ModeExploration(0.02, "softmax", 0.5)))
    explore(up.learner, "--mode", "serve", "--epsilon", "0.1")
    told = explore(up.learner, "--mode", "serve", "--kind", "greedy")
    assert told == "serve: greedy, epsilon 0.1\n"
    for actor in up.actors:
        eventually(lambda actor=actor: explores(actor, data, ModeExploration(0.1)))
    explore(up.learner, "--mode", "serve", "--epsilon", "0.02")


def test_status_tells_the_truth(up: LocalDeployment, data: Path) -> None:
    def told() -> bool:
        seen = status(up.learner)
        rows = journal_rows(data)
        counts = {kind: sum(row.kind == kind for row in rows) for kind in range(1, 6)}
        versions = {str(actor.report.policy_version) for actor in seen.actors}
        return (
            seen.journal_cursor == rows[-1].seq
            and seen.decisions == counts[2]
            and seen.feedback == counts[4]
            and seen.ended == counts[5]
            and seen.trainer_alive
            and {actor.report.address for actor in seen.actors} == set(up.actors)
            and all(actor.connected for actor in seen.actors)
            and versions == {str(seen.published)}
            and seen.trainer.journal_cursor == seen.journal_cursor
            and seen.trainer.updates == 8 * seen.trainer.lessons
        )

    eventually(told)


def test_rated_turns_are_the_rated_turns_of_the_journal(up: LocalDeployment, data: Path) -> None:
    rows = journal_rows(data)
    evaluated = {r.fact.decided.decision_id for r in rows if r.kind == 2 and r.fact.decided.mode == 4}
    rated = {r.fact.feedback.decision_id for r in rows if r.kind == 4} - evaluated
    eventually(lambda: status(up.learner).trainer.rated_turns == len(rated))
