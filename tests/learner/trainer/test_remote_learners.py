"""RLlib's remote learners learn what the local one learns."""

from pathlib import Path

import numpy as np
import pytest

from tests.learner.trainer.facts import Journal, make_domain
from tests.learner.trainer.test_algorithm import MemoryFeed, build, parameters, teach, train_until_paid
from turnwise_learner.trainer.algorithm import TurnwiseDQN, TurnwiseDQNConfig

pytestmark = [pytest.mark.usefixtures("_ray"), pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(240)]


def build_remote(journal: Journal) -> TurnwiseDQN:
    config = TurnwiseDQNConfig.for_domain(journal.domain)
    config.debugging(seed=1)
    config.learners(num_learners=2)
    algorithm = TurnwiseDQN(config=config)
    algorithm.env_runner.attach(MemoryFeed(journal))
    return algorithm


def test_two_remote_learners_are_equal_to_the_local_one_but_for_rounding(tmp_path: Path) -> None:
    journal = Journal(make_domain())
    teach(journal, range(30))
    local, remote = build(journal), build_remote(journal)
    assert remote.learner_group.is_remote
    train_until_paid(local)
    local.save_to_path(str(tmp_path / "local"))
    remote.restore_from_path(str(tmp_path / "local"))
    assert remote.learner.updates == local.learner.updates == 240
    before = parameters(remote)
    assert all(
        np.array_equal(before[name], there) for name, there in parameters(local).items() if name in before
    )
    batches = [local.replay.sample(32, n) for n in range(64)]
    alone = {tuple(sorted(rows)): errors for rows, errors in local.learner.update_many(batches)}
    together = {tuple(sorted(rows)): errors for rows, errors in remote.learner.update_many(batches)}
    assert remote.learner.updates == 304
    for rows, errors in alone.items():
        np.testing.assert_allclose(np.sort(together[rows]), np.sort(errors), atol=1e-4)
    learned = parameters(remote)
    assert any(not np.array_equal(before[name], learned[name]) for name in before)
    for name, wanted in parameters(local).items():
        if name in learned:
            np.testing.assert_allclose(learned[name], wanted, atol=1e-3, err_msg=name)
    # And it goes on by itself, at the same pace.
    teach(journal, range(30, 33))
    train_until_paid(remote)
    assert remote.learner.updates == 304 + 24
    remote.save_to_path(str(tmp_path / "remote"))
    local.restore_from_path(str(tmp_path / "remote"))
    assert local.learner.updates == 328
    for name, there in parameters(remote).items():
        assert np.array_equal(parameters(local)[name], there)
    remote.stop()


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    config = TurnwiseDQNConfig.for_domain(make_domain())
    config.learners(num_learners=3)
    with pytest.raises(ValueError, match="batch_size is 32; wanted a multiple of num_learners, 3"):
        config.validate()
