"""The histogram of durations."""

import random

import pytest

from turnwise_cli.latencies import Latencies


def of(values):
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    return latencies


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 1000, 20_000])
def test_a_percentile_is_what_so_many_did_not_exceed(count):
    chance = random.Random(count)
    values = [chance.lognormvariate(-5, 2) for _ in range(count)]
    ordered, told = sorted(values), of(values).summary()
    for percent in (50, 75, 90, 95, 99, 99.9, 99.99):
        exact = ordered[max(1, -(-round(count * percent * 100) // 10_000)) - 1]
        assert told[f"p{percent:g}"] == pytest.approx(1000 * exact, rel=0.006)
    assert told["min"] == pytest.approx(1000 * ordered[0], abs=1e-3)
    assert told["max"] == pytest.approx(1000 * ordered[-1], abs=1e-3)
    assert told["mean"] == pytest.approx(1000 * sum(values) / count, abs=1e-3)


def test_the_distribution_rises_to_all_of_them_and_is_finer_towards_its_end():
    told = of(i / 1000 for i in range(1, 1001)).distribution()
    assert [step["percentile"] for step in told[:8]] == [0, 25, 50, 62.5, 75, 81.25, 87.5, 90.625]
    assert told[2] == {"percentile": 50, "ms": 500, "count": 500}
    assert told[-1] == {"percentile": 100, "ms": 1000, "count": 1000}
    assert [step["count"] for step in told] == sorted(step["count"] for step in told)


def test_nothing_yet_has_no_percentiles():
    assert of([]).summary() == {}
    assert of([]).distribution() == []


def test_a_million_durations_take_a_few_thousand_cells():
    chance = random.Random(0)
    latencies = of(chance.lognormvariate(-5, 2) for _ in range(200_000))
    assert latencies.count == 200_000
    assert len(latencies._cells) < 7000
