"""Figures with their intervals."""

import numpy as np
import pytest

from infusion.intervals import bootstrap, mean, share


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


def test_a_mean_is_bootstrapped_as_any_statistic():
    for num in (1, 2, 7, 100):
        values = np.random.default_rng(num).normal(size=num)
        assert mean(values) == bootstrap(lambda some: float(some.mean()), values)
