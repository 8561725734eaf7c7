"""A few seconds of a soak; and what counts as flat."""

import asyncio
from pathlib import Path

import pytest

from processes import Holding
from soak import Plan, measure, trend


@pytest.mark.timeout(180)
def test_dialogues_stay_open_every_process_is_watched_and_nothing_is_lost(tmp_path: Path) -> None:
    plan = Plan(open=60, rate=60, minutes=0.05, warm_turns=120, settle_s=0)
    figures = asyncio.run(measure(plan, 1, tmp_path / "data")).figures
    assert (figures["failures"], figures["errors_met"]) == ([], {})
    assert figures["lost"] == {"lost_feedback": 0, "lost_turns": 0, "doubled": 0}
    assert figures["least_open"] > 0
    assert figures["dialogues"] >= plan.open
    assert figures["turns"] > plan.warm_turns
    assert 0 < figures["rated_turns"] < figures["turns"] / 4
    assert {"actor 1", "actor 2", "service", "trainer", "frontends"} <= figures["processes"].keys()
    assert figures["replay"]["rows_at_last"] >= plan.warm_turns


def looks(*own_mb: float) -> list[Holding]:
    return [
        Holding(at_s=60.0 * i, own_bytes=int(mb * 1e6), rss_bytes=0, files=3, threads=1)
        for i, mb in enumerate(own_mb)
    ]


def test_what_grows_all_the_time_is_not_flat() -> None:
    grows = trend(looks(*(50 + i / 5 for i in range(60))))
    assert not grows.flat
    assert grows.bytes_per_h == pytest.approx(12e6)
    assert grows.ratio == pytest.approx((50 + 56.5 / 5) / (50 + 2.5 / 5))


def test_noise_and_a_little_growth_of_a_small_process_are_flat() -> None:
    assert trend(looks(*(50 + i % 2 for i in range(60)))).flat
    small = trend(looks(*(20 + i / 40 for i in range(60))))
    assert small.ratio > 1.05
    assert small.flat
