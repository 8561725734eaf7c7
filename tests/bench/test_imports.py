"""Every benchmark and what it is made of can be imported: some of it is only wanted in long runs."""

import importlib
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCH.glob("*.py")))
def test_it_can_be_imported(name: str) -> None:
    importlib.import_module(name)
