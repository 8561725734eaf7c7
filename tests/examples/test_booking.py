"""The booking bot, with few calls; its person and its desk."""

import importlib
import random
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.examples.scripts import EXAMPLES, printed
from turnwise_actor.policy import CategorySlot, Domain, Encoder, RawObservation

pytestmark = pytest.mark.timeout(240)
BOOKING = EXAMPLES / "booking"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The example's own modules, by name."""
    monkeypatch.syspath_prepend(str(BOOKING))
    yield {name: importlib.import_module(name) for name in ("desk", "rules")}
    for name in ("person", "desk", "rules"):
        sys.modules.pop(name, None)


def test_it_is_taught_and_examined() -> None:
    told = printed(
        "booking/teach.py", "--warm-start", "4", "--dialogues", "10", "--every", "5", "--exam", "10"
    )
    lines = [re.sub(r"\s+\d+ %.*", "", line) for line in told.splitlines()]
    taught = ["5 calls by success alone", "10 calls by success alone"]
    assert lines == ["random", "rules", "4 calls with the rules", *taught]


def test_everything_seen_and_allowed_is_in_the_domain(modules: dict[str, Any]) -> None:
    domain = Domain.load(BOOKING / "domain.yaml")
    encoder = Encoder(domain)
    categories = {n: s.categories for n, s in domain.state.slots.items() if isinstance(s, CategorySlot)}
    for number in range(300):
        chance = random.Random(number)
        call = modules["desk"].Call(chance)
        while not call.outcome:
            seen = call.seen()
            encoder.validate(RawObservation(slots=seen))
            assert all(seen[name] in words for name, words in categories.items() if name in seen)
            assert set(call.allowed()) <= set(domain.action_ids)
            call.act(chance.choice(call.allowed()))


def test_every_call_can_be_won_by_asking_and_reading_back(modules: dict[str, Any]) -> None:
    call_type, rule = modules["desk"].Call, modules["rules"].rule

    def careful(call: Any) -> str:
        seen = call.seen()
        action = {"unclear": "ask_again", "ask_hours": "tell_hours"}.get(str(seen["intent"])) or rule(seen)
        return "confirm" if action == "book" and not seen["confirmed"] else action

    assert share_won(call_type, careful) > 0.98
    assert 0.35 < share_won(call_type, lambda call: rule(call.seen())) < 0.6
    assert share_won(call_type, lambda call: random.choice(call.allowed())) < 0.2


def share_won(call_type: Any, policy: Callable[[Any], str]) -> float:
    calls = [call_type(random.Random(number)) for number in range(400)]
    for call in calls:
        while not call.outcome:
            call.act(policy(call))
    return sum(call.outcome == "success" for call in calls) / len(calls)


def test_a_person_who_is_asked_the_same_again_and_again_leaves(modules: dict[str, Any]) -> None:
    call = modules["desk"].Call(random.Random(1))
    for _ in range(40):
        if not call.outcome:
            call.act("ask_name")
    assert call.outcome == "failure"
