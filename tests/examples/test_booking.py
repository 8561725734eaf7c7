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


def test_it_learns_from_success_alone_what_its_rules_do_not_know() -> None:
    told = printed("booking/teach.py", "--dialogues", "300", "--every", "150")
    percent = {what: int(share) for what, share in re.findall(r"^(.+?) +(\d+) % #*$", told, re.M)}
    taught = ["150 calls by success alone", "300 calls by success alone"]
    assert list(percent) == ["random", "rules", "rules that read back", "50 calls with the rules", *taught]
    half_read_back = (percent["rules"] + percent["rules that read back"]) / 2
    assert percent[taught[-1]] > half_read_back + 10
    assert re.search(r"^calls to 90 %: (150|not within 300)$", told, re.M)


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
    assert share_won(call_type, lambda call: rule(call.seen(), reads_back=True)) < 0.85
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
