"""Figures with their intervals."""

import math

import numpy as np
import pytest

from infusion.intervals import Figure, as_share, bootstrap, jackknife, mean, share


def test_share_is_wilsons():
    """Newcombe (Statistics in Medicine 17, 1998), table I."""
    for successes, num, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        found = share([True] * successes + [False] * (num - successes))
        assert found.num == num and found.value == pytest.approx(successes / num)
        assert (found.low, found.high) == pytest.approx((low, high), abs=2e-4)
    assert share([True] * 5).high == 1


@pytest.mark.parametrize("num", [1, 7, 49, 200, 998])
def test_the_interval_holds_the_value(num):
    for successes in (0, 1, num - 1, num):
        found = share([True] * successes + [False] * (num - successes))
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * 0.1, abs=0.02)
    assert found.high == pytest.approx(values.mean() + 1.96 * 0.1, abs=0.02)
    assert found == mean(values)


def test_rows_are_drawn_whole():
    rows = np.stack([np.arange(50.0), 2 * np.arange(50.0)], axis=1) + 1
    found = bootstrap(lambda some: float((some[:, 1] - 2 * some[:, 0]).mean()), rows)
    assert found.low == found.high == found.value == -1


def test_the_interval_of_a_mean_is_students():
    for num in (2, 7, 100):
        values = np.random.default_rng(num).normal(size=num)
        assert mean(values) == pytest.approx(jackknife(lambda kept: float(values[kept].mean()), num))  # noqa: B023


@pytest.mark.parametrize("num", [3, 10])
def test_the_interval_of_a_few_values_holds_their_mean_as_often_as_it_says(num):
    drawn = np.random.default_rng(0).normal(3, 2, size=(2000, num))
    assert np.mean([found.low <= 3 <= found.high for found in map(mean, drawn)]) == pytest.approx(0.95, abs=0.015)


def test_what_does_not_scatter_has_no_spread():
    assert mean([0.1] * 3) == Figure(0.1, 0.1, 0.1, 3)
    alone = mean([0.1])
    assert alone.value == 0.1 and alone.num == 1 and math.isnan(alone.low) and math.isnan(alone.high)


def test_the_interval_of_shares_lies_within_them():
    assert as_share(mean([0.0, 1.0])) == Figure(0.5, 0.0, 1.0, 2)
    assert math.isnan(as_share(mean([1.0])).high)
