"""The table of decisions against a dict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnwise_learner.trainer.decision_rows import DecisionRows

ROWS = 80


@given(st.lists(st.tuples(st.integers(0, ROWS - 1), st.text("ab:", min_size=1, max_size=5)), max_size=300))
def test_it_is_a_dict_of_strings(steps: list[tuple[int, str]]) -> None:
    """Each step frees the row if it is in use, or else puts the id there unless it is somewhere already."""
    table, wanted = DecisionRows(np.zeros(ROWS, "S5")), dict[str, int]()
    for row, name in steps:
        held = [known for known, at in wanted.items() if at == row]
        if held:
            table.remove(row)
            del wanted[held[0]]
        elif name not in wanted:
            table.add(name, row)
            wanted[name] = row
        assert table.find(name) == wanted.get(name, -1)
        assert len(table) == len(wanted)
    assert table == wanted
    assert DecisionRows(table._ids) == wanted


def test_a_missing_decision_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        DecisionRows(np.zeros(64, "S40"))["nobody"]


@pytest.mark.parametrize("name", ["", "x" * 41])
def test_an_id_that_does_not_fit_is_refused_not_cut(name: str) -> None:
    with pytest.raises(ValueError, match="wanted 1 to 40"):
        DecisionRows(np.zeros(64, "S40")).add(name, 0)
