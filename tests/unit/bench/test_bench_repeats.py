"""Figures from a few repetitions."""

from __future__ import annotations

import pytest

from tgis_cli.bench.repeats import divide
from tgis_cli.bench.result import Estimate
from tgis_cli.bench.statistics.rates import estimate_mean


def test_the_interval_around_a_mean_is_students():
    estimate = estimate_mean([10.0, 11.0, 12.0])

    assert estimate.value == 11.0
    assert (estimate.low, estimate.high) == pytest.approx((8.516, 13.484), abs=1e-3)  # 11 -+ 4.303 / sqrt(3)


def test_one_value_has_no_interval():
    assert estimate_mean([10.0]) == Estimate(10.0)


def test_times_are_never_negative():
    assert estimate_mean([0.0, 10.0]).low == 0.0


def test_a_rate_has_the_ends_of_its_time_exchanged():
    assert divide(100, Estimate(5.0, 4.0, 10.0)) == Estimate(20.0, 10.0, 25.0)
    assert divide(100, Estimate(5.0, 0.0, 10.0)) == Estimate(20.0, 10.0, None)
    assert divide(100, Estimate(5.0)) == Estimate(20.0)
