"""Any process may be killed at any time; what was acknowledged is there and is learned."""

import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

import turnwise
from tests.e2e.deployment import (
    deployed,
    explore,
    explores,
    journal_rows,
    kill,
    status,
    wait_learned,
)
from tests.waiting import eventually
from turnwise.v1 import training_pb2, training_pb2_grpc
from turnwise_actor.policy import ModeExploration
from turnwise_deploy.local import LocalDeployment

pytestmark = pytest.mark.timeout(240)

SOFT = ("--mode", "serve", "--kind", "softmax", "--temperature", "0.5", "--epsilon", "0.1")


def teach(bot: turnwise.Client, count: int) -> list[tuple[str, turnwise.Receipt]]:
    """`count` rated single-turn dialogues: decision and receipt of each."""
    taught = []
    for i in range(count):
        with bot.dialogue(user="ann") as talk:
            turn = talk.act(text=f"phrase {i % 7}")
            taught.append((turn.decision_id, turn.reward(1 if i % 2 else -1)))
    return taught


def journaled(data: Path) -> set[str]:
    """Decisions with a reward in the journal."""
    return {r.fact.feedback.decision_id for r in journal_rows(data) if r.kind == 4}


def trainer_pid(up: LocalDeployment) -> int:
    return int(eventually(lambda: status(up.learner).trainer_alive and status(up.learner).trainer.pid))


def opened_by_rllib(checkpoints: Path) -> int:
    """Rows of replay in the newest checkpoint, as a plain Python session sees them."""
    path = checkpoints / (checkpoints / "LATEST").read_text().strip()
    code = (
        "from ray.rllib.algorithms.algorithm import Algorithm;"
        f"print(len(Algorithm.from_checkpoint({str(path)!r}).replay))"
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout.split()[-1])


def test_killing_the_trainer_stops_neither_answers_nor_acknowledgements(tmp_path: Path) -> None:
    with deployed(tmp_path, actors=1) as up, turnwise.Client(list(up.actors)) as bot:
        taught = teach(bot, 5)
        explore(up.learner, *SOFT)
        generation = status(up.learner).published.generation
        first = trainer_pid(up)
        kill(first)
        eventually(lambda: not status(up.learner).trainer_alive)
        away = teach(bot, 5)
        assert {receipt.settled for _, receipt in away} == {"LEARNER"}
        eventually(lambda: status(up.learner).trainer_alive)
        wait_learned(up.actors[0], away[-1][1].journal_cursor)
        assert explores(up.actors[0], tmp_path, ModeExploration(0.1, "softmax", 0.5))
        after = status(up.learner)
        assert after.trainer.pid != first
        assert after.published.generation > generation
        assert after.trainer.rated_turns == 10
        assert {decision for decision, _ in taught + away} <= journaled(tmp_path)


def test_killing_the_learner_loses_no_acknowledged_turn(tmp_path: Path) -> None:
    with deployed(tmp_path, actors=1) as up, turnwise.Client(list(up.actors)) as bot:
        taught: list[tuple[str, turnwise.Receipt]] = []
        stop = threading.Event()

        def talk() -> None:
            while not stop.is_set():
                taught.extend(teach(bot, 1))

        frontend = threading.Thread(target=talk)
        frontend.start()
        explore(up.learner, *SOFT)
        eventually(lambda: len(taught) > 20)
        epoch = status(up.learner).epoch
        kill(up.pids()[up.learner])
        reached = len(taught)
        # The actor goes on answering and settles feedback in its spool meanwhile.
        eventually(lambda: len(taught) > reached + 5)
        eventually(lambda: status(up.learner).epoch > epoch)
        eventually(lambda: len(taught) > reached + 20)
        stop.set()
        frontend.join()
        decisions = {decision for decision, _ in taught}
        eventually(lambda: decisions <= journaled(tmp_path))
        eventually(lambda: status(up.learner).trainer_alive)
        eventually(lambda: status(up.learner).trainer.rated_turns == len(decisions))
        eventually(lambda: status(up.learner).trainer.updates == 8 * len(decisions))
        assert explores(up.actors[0], tmp_path, ModeExploration(0.1, "softmax", 0.5))


def test_killing_an_actor_loses_no_turn_and_no_dialogue(tmp_path: Path) -> None:
    with deployed(tmp_path, actors=2) as up, turnwise.Client(list(up.actors)) as bot:
        talks = [bot.dialogue(user=f"u{i}") for i in range(6)]
        decisions = set()
        for index in range(6):
            if index == 3:
                kill(up.pids()[up.actors[0]])
            for talk in talks:
                turn = talk.act(text=f"turn {index}")
                assert turn.index == index
                decisions.add(turn.decision_id)
                turn.reward(1)
        for talk in talks:
            talk.end(outcome="goodbye")
        eventually(lambda: decisions <= journaled(tmp_path))
        # Started again by the supervisor, on the same port.
        eventually(
            lambda: all(actor.connected for actor in status(up.learner).actors) and up.pids()[up.actors[0]]
        )
        with turnwise.Client(up.actors[0]) as alone, alone.dialogue() as talk:
            assert talk.act(text="back again").action
        decided = {r.fact.decided.decision_id for r in journal_rows(tmp_path) if r.kind == 2}
        assert decisions <= decided


def test_checkpoints_are_saved_by_turns_by_time_and_on_demand(tmp_path: Path) -> None:
    """A torn newest one is passed over for the one before it."""
    every = ("--checkpoint-every-turns", "10", "--checkpoint-every-s", "6")

    def saved() -> int:
        return int(status(up.learner).trainer.last_checkpoint.journal_cursor)

    with deployed(tmp_path, actors=1, learner_arguments=every) as up, turnwise.Client(up.actors[0]) as bot:
        cursor = teach(bot, 10)[-1][1].journal_cursor
        eventually(lambda: saved() >= cursor, 5)
        cursor = teach(bot, 1)[-1][1].journal_cursor
        eventually(lambda: saved() >= cursor, 20)
        cursor = teach(bot, 1)[-1][1].journal_cursor
        with grpc.insecure_channel(up.learner) as channel:
            stub = training_pb2_grpc.OperatorStub(channel)
            info = stub.SaveCheckpoint(training_pb2.SaveCheckpointRequest(pin=True), timeout=30)
        assert info.pinned
        newest = Path(info.path)
        state = newest / "algorithm_state.pkl"
        state.write_bytes(state.read_bytes()[:100])
        kill(trainer_pid(up))
        eventually(lambda: not status(up.learner).trainer_alive)
        eventually(lambda: status(up.learner).trainer_alive and status(up.learner).trainer.updates == 96)
        assert status(up.learner).trainer.rated_turns == 12


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    with deployed(tmp_path) as up, turnwise.Client(list(up.actors)) as bot:
        with bot.dialogue(user="ann") as lesson:
            receipt = lesson.act(text="where are you").correct("tell_hours")
        teach(bot, 10)
        open_dialogue = bot.dialogue(id="kept", user="ann")
        last = open_dialogue.act(text="where are you")
        token = open_dialogue.token
        wait_learned(up.actors[0], receipt.journal_cursor)
        eventually(lambda: status(up.learner).trainer.updates == 88)
        before = status(up.learner)
    assert opened_by_rllib(tmp_path / "checkpoints") == before.trainer.replay_rows
    with deployed(tmp_path) as up, turnwise.Client(list(up.actors)) as bot:
        after = status(up.learner)
        assert after.trainer.rated_turns == before.trainer.rated_turns
        assert after.trainer.updates == before.trainer.updates
        assert after.trainer.replay_rows >= before.trainer.replay_rows
        assert after.published.generation > before.published.generation
        assert after.journal_cursor >= before.journal_cursor
        with bot.dialogue(mode="evaluate") as talk:
            assert talk.act(text="where are you").action == "tell_hours"
        resumed = bot.resume(token)
        turn = resumed.act(text="still there?")
        assert (turn.index, resumed.id) == (last.index + 1, "kept")
        resumed.end(outcome="goodbye")
        rows = [r for r in journal_rows(tmp_path) if r.dialogue_id == "kept" and r.kind == 2]
        parents = {r.fact.decided.decision_id: r.fact.decided.parent_id for r in rows}
        assert parents[turn.decision_id] == last.decision_id
