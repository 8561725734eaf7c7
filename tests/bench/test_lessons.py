"""What the figures of the benchmark of teacher effort are made of."""

import json
from dataclasses import replace

import numpy as np
import pytest

from kinds import KINDS, STOCK
from lessons import Outcome, parse_options, summary
from report import Report
from run import table

REWARDS = next(kind for kind in KINDS if kind.name == "rewards")


def outcomes(*reached: int | None, kind: object = REWARDS, limit: int = 200) -> list[Outcome]:
    return [
        Outcome(kind, seed, limit, lessons, [1.0] * (lessons or 700))  # type: ignore[arg-type]
        for seed, lessons in enumerate(reached, 1)
    ]


def test_the_key_is_the_median_of_the_seeds_ratios() -> None:
    report = summary(outcomes(200, 220, 300))
    assert report.ratios == {"rewards_95_vs_limit": pytest.approx(1.1)}
    assert report.goals == {"rewards_95_vs_limit": 1.25}
    assert report.ok


def test_a_miss_counts_as_three_times_the_limit_and_spoils_the_report() -> None:
    report = summary(outcomes(200, 200, None))
    assert report.figures["rewards"]["ratios"] == [1.0, 1.0, 3.0]
    assert report.figures["rewards"]["seeds_reaching"] == pytest.approx(2 / 3)
    assert report.ratios["rewards_95_vs_limit"] == 1.0
    assert not report.ok


def test_a_threshold_reached_too_late_is_a_miss() -> None:
    (late,) = outcomes(601)
    assert late.missed
    assert late.ratio == 3.0


def test_stock_is_compared_with_ours_seed_by_seed() -> None:
    stock = [replace(outcome, kind=STOCK) for outcome in outcomes(600, 900, None)]
    report = summary([*outcomes(200, 200, 200), *stock])
    assert report.figures["tuned_stock"]["lessons"]["median"] == 700
    assert report.ratios["tuned_stock_vs_ours"] == pytest.approx(3.5)


def test_the_short_run_teaches_rewards_and_corrections_to_five_seeds() -> None:
    options = parse_options(["--short"])
    assert (options.only, options.seeds) == (("rewards", "corrections"), 5)
    assert parse_options([]).seeds == 30
    assert parse_options(["--only", "tuned_stock"]).only == ("rewards", "tuned_stock")


def test_a_report_takes_numpys_numbers() -> None:
    figures = {"updates": np.median([1, 2]), "scores": [np.int64(3), np.float32(0.5)]}
    report = Report("lessons", figures=figures)
    assert json.loads(report.line())["figures"] == {"updates": 1.5, "scores": [3, 0.5]}


def test_the_table_knows_which_goals_are_least_values() -> None:
    report = {
        "name": "lessons",
        "ratios": {"tuned_stock_vs_ours": 2.0, "rewards_95_vs_limit": 1.1, "memory_vs_serve": 0.5},
        "goals": {"tuned_stock_vs_ours": 3.0, "rewards_95_vs_limit": 1.25, "memory_vs_serve": 0.4},
    }
    assert list(table([report]).columns[4].cells) == ["missed", "met", "missed"]
