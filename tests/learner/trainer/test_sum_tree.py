"""The sum tree against cumulative sums."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise_learner.trainer.sum_tree import SumTree


@pytest.mark.parametrize("capacity", [1, 64, 65, 5000, 300_000])
def test_total_is_the_sum_of_all_leaves(capacity: int) -> None:
    tree, rng = SumTree(capacity), np.random.default_rng(0)
    for _ in range(5):
        rows = rng.integers(0, capacity, 100)
        tree.set(rows, rng.random(100))
    assert tree.total == pytest.approx(tree.leaves.sum())


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300), st.integers(0, 2**32 - 1))
def test_a_mark_falls_where_the_cumulative_sum_says(priorities: list[float], seed: int) -> None:
    tree = SumTree(len(priorities))
    tree.set(np.arange(len(priorities)), np.array(priorities))
    if tree.total < 1e-200:
        return
    marks = np.random.default_rng(seed).random(50) * tree.total
    rows = tree.sample(marks)
    assert (tree.leaves[rows] > 0).all()
    cumulated = np.cumsum(tree.leaves)
    slack = 1e-9 * tree.total
    assert (cumulated[rows] >= marks - slack).all()
    assert (cumulated[rows] - tree.leaves[rows] <= marks + slack).all()


def test_leaves_of_zero_are_never_drawn_even_at_the_very_end() -> None:
    tree = SumTree(5000)
    tree.set(np.arange(10, 4000), 0.1)
    tree.set(np.arange(100, 3990), 0.0)
    rows = tree.sample(np.array([0.0, tree.total / 2, np.nextafter(tree.total, 0), tree.total]))
    assert (tree.leaves[rows] > 0).all()


def test_draws_follow_the_priorities() -> None:
    tree, rng = SumTree(200), np.random.default_rng(1)
    priorities = rng.random(200)
    tree.set(np.arange(200), priorities)
    counts = np.bincount(tree.sample(rng.random(200_000) * tree.total), minlength=200)
    assert np.abs(counts / 200_000 - priorities / priorities.sum()).max() < 1e-3
