"""What RLlib's own calls make of a checkpoint that was in a bucket."""

from pathlib import Path

import numpy as np
import pytest
from ray.rllib.algorithms.algorithm import Algorithm

from tests.learner.trainer.facts import Journal, make_domain
from tests.learner.trainer.test_algorithm import build, parameters, same, teach, train_until_paid
from tests.object_store import Buckets, _cloud, buckets  # noqa: F401
from turnwise_actor.policy import PolicyVersion
from turnwise_learner.store.checkpoint_copies import CheckpointCopies, fetch, stored_checkpoints
from turnwise_learner.store.objects import ObjectStore
from turnwise_learner.trainer.checkpoints import CheckpointFolder

pytestmark = [pytest.mark.usefixtures("_ray"), pytest.mark.filterwarnings("ignore")]


def test_a_checkpoint_from_the_store_is_opened_by_a_stock_call(buckets: Buckets, tmp_path: Path) -> None:  # noqa: F811
    journal = Journal(make_domain())
    algorithm = build(journal)
    teach(journal, range(9))
    train_until_paid(algorithm)
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.save(algorithm, PolicyVersion(1, 1), journal.domain.fingerprint)
    store = ObjectStore.open(buckets.uri(buckets.create()))
    CheckpointCopies(store, folder.root, keep_last=5).copy(10**9)
    (stored,) = stored_checkpoints(store)
    back = fetch(store, stored, CheckpointFolder(tmp_path / "back"))
    restored = Algorithm.from_checkpoint(str(back.path))
    assert restored.learner.updates == algorithm.learner.updates == 72
    assert same(parameters(restored), parameters(algorithm))
    assert len(restored.replay) == 9
    priorities = [[a.replay.priority(f"t{i}") for i in range(9)] for a in (restored, algorithm)]
    assert np.array_equal(*priorities)
    restored.learn(5)
    assert restored.learner.updates == 77
