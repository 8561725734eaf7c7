"""The reference of the learning-speed benchmark does the same learning, so that speeds can be compared."""

import numpy as np
import pytest
import torch

from reference import Strata
from updates import Turns, build_ours, build_reference, loss_difference, parameters_of

pytestmark = [pytest.mark.usefixtures("_ray"), pytest.mark.filterwarnings("ignore")]


def test_its_loss_errors_and_step_are_those_of_the_learner() -> None:
    turns = Turns(512)
    ours = build_ours(32, turns)
    ours.learn(30)
    reference = build_reference(ours, turns)
    assert loss_difference(ours, reference) < 1e-5
    # From fresh optimizers, the same batch moves both alike.
    rows, columns = ours.replay.sample(32)
    reference.draw = lambda size: (rows, columns["weights"])  # type: ignore[method-assign]
    (adam,) = ours.learner._named_optimizers.values()
    adam.state.clear()
    next(iter(ours.learner.update_many([(rows, columns)])))
    reference.update(32)
    own = parameters_of(ours.module.encoder, ours.module.head)
    for mine, theirs in zip(own, reference.online, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_its_strata_are_drawn_by_priority() -> None:
    strata, rng = Strata(1000), np.random.default_rng(0)
    priorities = rng.random((2, 1000)) * (rng.random((2, 1000)) < 0.3)
    strata.set(np.arange(1000), priorities)
    drawn = strata.draw((150_000, 50_000), rng)
    for rows, wanted in ((drawn[:150_000], priorities[0]), (drawn[150_000:], priorities[1])):
        seen = np.bincount(rows, minlength=1000) / len(rows)
        np.testing.assert_allclose(seen, wanted / wanted.sum(), atol=1e-4)
