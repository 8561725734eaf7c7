"""TurnwiseDQN over a journal in memory: pacing, checkpoints by RLlib's own calls."""

import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.learner.trainer.facts import Journal, make_domain
from turnwise_actor.policy import Exploration, ModeExploration, PolicyVersion
from turnwise_learner.trainer.algorithm import EXPLORATION, TurnwiseDQN, TurnwiseDQNConfig
from turnwise_learner.trainer.assembler import Assembler
from turnwise_learner.trainer.checkpoints import CheckpointFolder
from turnwise_learner.trainer.turns import Change, TurnRecord

pytestmark = [pytest.mark.usefixtures("_ray"), pytest.mark.filterwarnings("ignore")]

RIGHT = {"hello": "greet", "which one": "ask", "see you": "bye"}


class MemoryFeed:
    """A feed over a journal in memory."""

    journal_id = "j" * 32

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._assembler = Assembler(journal.domain, journal.dialogues, journal.domain_json)

    def read(self, cursor: int, wait_s: float, most: int) -> list[Change]:
        return self._assembler.assemble(self._journal.rows[cursor:])


def build(journal: Journal) -> TurnwiseDQN:
    config = TurnwiseDQNConfig.for_domain(journal.domain)
    config.debugging(seed=1)
    algorithm = TurnwiseDQN(config=config)
    algorithm.env_runner.attach(MemoryFeed(journal))
    return algorithm


def teach(journal: Journal, numbers: Iterable[int]) -> None:
    """Single-turn dialogues, each with its own phrase and action in turn, rated, ended."""
    for i in numbers:
        text, right = list(RIGHT.items())[i % 3]
        action = ("greet", "ask", "bye")[(i // 3) % 3]
        say = {"dialogue_id": f"d{i}"}
        journal.decided(f"t{i}", action=action, text=text, **say)
        journal.feedback(f"t{i}", reward=1 if action == right else -1, **say)
        journal.ended(f"t{i}", terminated=True, **say)


def train_until_paid(algorithm: TurnwiseDQN) -> None:
    algorithm.train()
    while algorithm.pacer.owed:
        algorithm.train()


def parameters(algorithm: TurnwiseDQN) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in algorithm.module.state_dict().items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[k], other[k]) for k in one)


def test_every_lesson_gets_its_updates_and_silence_none() -> None:
    journal = Journal(make_domain())
    algorithm = build(journal)
    algorithm.train()
    assert algorithm.learner.updates == 0
    teach(journal, range(5))
    train_until_paid(algorithm)
    assert algorithm.learner.updates == 40
    for _ in range(5):
        algorithm.train()
    assert algorithm.learner.updates == 40
    assert algorithm.pacer.learned_through == len(journal.rows)


def test_it_learns_what_it_is_taught() -> None:
    journal = Journal(make_domain())
    algorithm = build(journal)
    teach(journal, range(9))
    train_until_paid(algorithm)
    reader = Assembler(journal.domain, journal.dialogues, journal.domain_json)._reader
    for text, right in RIGHT.items():
        row = next(r for r in journal.rows if r.fact.decided.observation.text == text)
        obs = torch.from_numpy(reader.encode(row.fact.decided.observation, ()))[None]
        action = algorithm.env_runner.module.forward_inference({"obs": obs})["actions"].item()
        trained = algorithm.module.forward_inference({"obs": obs})["actions"].item()
        assert journal.domain.action_ids[trained] == right
        assert 0 <= action < 3


def test_a_lesson_taken_back_leaves_no_debt() -> None:
    journal = Journal(make_domain())
    algorithm = build(journal)
    journal.decided("a")
    journal.feedback("a", reward=-1)
    train_until_paid(algorithm)
    row = journal.feedback("a", retraction=True)
    algorithm.train()
    assert algorithm.pacer.owed == 0
    assert algorithm.pacer.learned_through == row.seq


def test_at_gamma_09_a_first_lesson_is_owed_until_its_next_state_is_known() -> None:
    journal = Journal(make_domain(gamma=0.9))
    algorithm = build(journal)
    journal.decided("a")
    journal.feedback("a", reward=-1)
    algorithm.train()
    assert (algorithm.pacer.owed, algorithm.learner.updates) == (8, 0)
    journal.decided("b", "a")
    train_until_paid(algorithm)
    assert algorithm.learner.updates == 8


def test_paused_it_takes_facts_in_and_learns_nothing() -> None:
    journal = Journal(make_domain())
    algorithm = build(journal)
    algorithm.paused = True
    teach(journal, range(3))
    algorithm.train()
    assert algorithm.learner.updates == 0
    assert len(algorithm.replay) == 3
    algorithm.paused = False
    train_until_paid(algorithm)
    assert algorithm.learner.updates == 24


def test_a_restored_algorithm_goes_on_bit_for_bit(tmp_path: Path) -> None:
    journal = Journal(make_domain(gamma=0.9, n_step=3))
    one = build(journal)
    teach(journal, range(20))
    train_until_paid(one)
    path = one.save_to_path(str(tmp_path / "c"))
    other = build(journal)
    other.restore_from_path(path)
    other.env_runner.attach(MemoryFeed(journal))
    assert same(parameters(one), parameters(other))
    assert other.env_runner.cursor == len(journal.rows)
    assert other.env_runner.counters == one.env_runner.counters
    teach(journal, range(20, 40))
    for algorithm in (one, other):
        train_until_paid(algorithm)
    assert one.learner.updates == other.learner.updates == 320
    assert same(parameters(one), parameters(other))
    for decision in (f"t{i}" for i in range(40)):
        assert one.replay.priority(decision) == other.replay.priority(decision)


def test_a_checkpoint_is_saved_without_a_second_copy_of_the_replay(tmp_path: Path) -> None:
    algorithm = build(Journal(make_domain()))
    replay = algorithm.replay
    obs, allowed = np.ones(replay.obs.shape[1], np.float32), np.ones(3, bool)
    replay.apply([TurnRecord(str(i), obs, allowed, 0, 1.0) for i in range(20_000)])
    state = replay.get_state()
    size = sum(column.nbytes for column in state["columns"].values())
    tracemalloc.start()
    path = algorithm.save_to_path(str(tmp_path / "c"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size / 4
    other = build(Journal(make_domain()))
    other.restore_from_path(path)
    np.testing.assert_equal(other.replay.get_state(), state)


def test_exploration_is_kept_and_one_from_before_the_kinds_is_greedy() -> None:
    one, other = (build(Journal(make_domain())) for _ in range(2))
    one.exploration = Exploration(0.3, 0.1, teach_kind="softmax", teach_temperature=0.7)
    other.set_state(one.get_state())
    assert other.exploration == one.exploration
    before = {"teach_epsilon": 0.3, "serve_epsilon": 0.1}
    other.set_state({**one.get_state(), EXPLORATION: before})
    assert other.exploration == Exploration(0.3, 0.1)
    assert other.exploration.of("teach") == ModeExploration(0.3, "greedy")


def test_float16_observations_are_a_domains_choice_and_survive_a_restart(tmp_path: Path) -> None:
    journal = Journal(make_domain(replay={"obs_dtype": "float16"}))
    one, other = build(journal), build(journal)
    teach(journal, range(9))
    train_until_paid(one)
    other.restore_from_path(one.save_to_path(str(tmp_path / "c")))
    assert one.replay.obs.dtype == other.replay.obs.dtype == np.float16
    np.testing.assert_array_equal(one.replay.obs, other.replay.obs)
    for algorithm in (one, other):
        algorithm.learn(10)
    assert same(parameters(one), parameters(other))


def test_advancing_is_training_without_results() -> None:
    one, other = (Journal(make_domain()) for _ in range(2))
    trained, advanced = build(one), build(other)
    for journal in (one, other):
        teach(journal, range(9))
    for _ in range(60):
        trained.train()
        advanced.advance()
    assert advanced.learner.updates == trained.learner.updates == 72
    assert same(parameters(trained), parameters(advanced))


def test_a_checkpoint_of_another_journal_is_refused(tmp_path: Path) -> None:
    journal = Journal(make_domain())
    algorithm = build(journal)
    feed = MemoryFeed(journal)
    feed.journal_id = "k" * 32
    with pytest.raises(ValueError, match="belongs to journal"):
        algorithm.env_runner.attach(feed)


PLAIN = """
import sys, warnings
warnings.simplefilter("ignore")
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.rl_module.rl_module import RLModule
import numpy as np, torch

path = sys.argv[1]
algorithm = Algorithm.from_checkpoint(path)
print(len(algorithm.replay), algorithm.replay.priority("t4"), algorithm.learner.updates)
algorithm.train()
algorithm.learn(10)
print(algorithm.learner.updates)
module = RLModule.from_checkpoint(path + "/learner_group/learner/rl_module/default_policy")
obs = torch.zeros(1, module.observation_space.shape[0])
print(module.forward_inference({"obs": obs})["actions"].shape[0])
"""


@pytest.mark.timeout(180)
def test_stock_rllib_calls_open_a_checkpoint_in_a_plain_session(tmp_path: Path) -> None:
    journal = Journal(make_domain())
    algorithm = build(journal)
    teach(journal, range(9))
    train_until_paid(algorithm)
    folder = CheckpointFolder(tmp_path)
    saved = folder.save(algorithm, PolicyVersion(1, 1), journal.domain.fingerprint)
    ran = subprocess.run(
        [sys.executable, "-c", PLAIN, str(saved.path)], capture_output=True, text=True, timeout=150
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.strip().splitlines()[-3:]
    assert lines == [f"9 {algorithm.replay.priority('t4')} 72", "82", "1"]


def test_checkpoints_are_complete_or_absent_and_pruned(tmp_path: Path) -> None:
    journal = Journal(make_domain())
    algorithm = build(journal)
    folder = CheckpointFolder(tmp_path, keep_last=2)
    names = []
    for i in range(4):
        teach(journal, [i])
        train_until_paid(algorithm)
        saved = folder.save(algorithm, PolicyVersion(1, i), journal.domain.fingerprint, pin=i == 0)
        names.append(saved.path.name)
    assert folder.latest_name() == names[3]
    assert [c.path.name for c in folder.all()] == [names[0], names[2], names[3]]
    (tmp_path / ".aside-torn").mkdir()
    assert CheckpointFolder(tmp_path).newest_first()[0].path.name == names[3]
    assert not (tmp_path / ".aside-torn").exists()


def test_saving_twice_without_a_change_writes_once(tmp_path: Path) -> None:
    journal = Journal(make_domain())
    algorithm = build(journal)
    teach(journal, range(2))
    train_until_paid(algorithm)
    folder = CheckpointFolder(tmp_path)
    one = folder.save(algorithm, PolicyVersion(1, 1), "f")
    other = folder.save(algorithm, PolicyVersion(1, 1), "f", pin=True)
    assert one.path == other.path
    assert folder.all()[0].manifest.pinned
