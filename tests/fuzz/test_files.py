"""Damaged tokens, policies, spools, files, requests and facts: refused as documented, or whole."""

import pytest

from tests.fuzz.parsers import PARSERS
from tests.fuzz.wild import inputs


@pytest.mark.timeout(100_000)
@pytest.mark.parametrize("name", PARSERS)
def test_what_is_wild_is_read_or_refused_as_documented(name: str) -> None:
    for _ in inputs(name, PARSERS[name]):
        pass
