"""Percentiles and their intervals: known ranks, and how often intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from tgis_cli.bench.result import Estimate
from tgis_cli.bench.statistics.distributions import binomial_ranks, student_t_quantile
from tgis_cli.bench.statistics.quantiles import Labels, Runs, batch_in_time, estimate_percentiles


@pytest.mark.parametrize(
    ("num", "share", "ranks"),
    [
        (10, 0.5, (2, 9)),  # tables of the sign test
        (100, 0.5, (40, 61)),
        (100, 0.9, (84, 96)),
        (10_000_000, 0.5, (4_996_901, 5_003_100)),  # 5,000,000 ± 1.96 · √2,500,000
    ],
)
def test_ranks_are_those_of_the_binomial_distribution(num, share, ranks):
    assert binomial_ranks(num, share) == ranks


@pytest.mark.parametrize(("share", "least"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3688)])
def test_a_percentile_needs_enough_samples_for_the_upper_end_of_its_interval(share, least):
    assert binomial_ranks(least - 1, share)[1] is None
    assert binomial_ranks(least, share)[1] is not None


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (9, 2.26216), (30, 2.04227)])
def test_students_t_has_the_quantiles_of_the_tables(freedom, quantile):
    assert student_t_quantile(0.975, freedom) == pytest.approx(quantile, rel=1e-5)


def test_percentiles_are_order_statistics():
    samples = np.random.default_rng(1).permutation(np.arange(1.0, 101.0))

    estimates = estimate_percentiles(samples)

    assert estimates == {"50": Estimate(50, 40, 61), "90": Estimate(90, 84, 96), "95": Estimate(95, 90, 100)}


@pytest.mark.parametrize("num", [0, 5])
def test_too_few_samples_have_no_percentiles(num):
    assert estimate_percentiles(np.arange(float(num))) == {}


def test_equal_samples_have_percentiles_without_width():
    assert estimate_percentiles(np.zeros(40))["50"] == Estimate(0, 0, 0)


def make_requests(rng, *, num, size, likeness):
    """Gaps of requests, each of which is fast or slow as a whole: ``likeness`` is the share of the variance."""
    own = rng.normal(0, np.sqrt(likeness), (num, 1))
    return (own + rng.normal(0, np.sqrt(1 - likeness), (num, size))).ravel()


def make_steps(rng, *, num, streams, likeness):
    """Gaps of streams that wait for the same steps, of which neighbours are alike; stream by stream."""
    shared = np.convolve(rng.normal(0, 1, num + 9), np.full(10, 10**-0.5), "valid")
    return (np.sqrt(likeness) * shared + rng.normal(0, np.sqrt(1 - likeness), (streams, num))).ravel()


def count_hits(draw, percent, truth, *, runs=200):
    estimates = [draw().get(percent) for _ in range(runs)]
    return np.mean([one is not None and one.low <= truth <= one.high for one in estimates])


@pytest.mark.parametrize(("percent", "truth"), [("50", 0.0), ("95", 1.6449)])
def test_intervals_hold_the_truth_if_gaps_of_one_request_are_alike(percent, truth):
    rng = np.random.default_rng(2)
    sizes = np.full(100, 20)

    def draw(clusterings):
        return estimate_percentiles(make_requests(rng, num=100, size=20, likeness=0.5), clusterings)

    assert count_hits(lambda: draw([Runs(sizes)]), percent, truth) >= 0.93
    assert count_hits(lambda: draw([]), percent, truth) < 0.85


@pytest.mark.parametrize(("percent", "truth"), [("50", 0.0), ("95", 1.6449)])
def test_intervals_hold_the_truth_if_streams_wait_for_the_same_steps(percent, truth):
    rng = np.random.default_rng(3)
    labels = np.tile(np.repeat(np.arange(20, dtype=np.uint8), 100), 4)

    def draw(clusterings):
        return estimate_percentiles(make_steps(rng, num=2000, streams=4, likeness=0.8), clusterings)

    assert count_hits(lambda: draw([Runs(np.full(4, 2000)), Labels.of(labels)]), percent, truth) >= 0.91
    assert count_hits(lambda: draw([]), percent, truth) < 0.75


def test_intervals_hold_the_truth_if_requests_in_a_row_are_alike():
    rng = np.random.default_rng(4)

    def draw(num=400):
        shared = np.convolve(rng.normal(0, 1, num + 9), np.full(10, 10**-0.5), "valid")
        return estimate_percentiles(shared, batch_in_time(num))

    assert count_hits(draw, "50", 0.0) >= 0.91


def test_independent_samples_lose_little_by_being_checked_for_likeness():
    rng = np.random.default_rng(5)

    def measure_width(clusterings):
        one = estimate_percentiles(rng.normal(0, 1, 2000), clusterings)["90"]
        return one.high - one.low

    checked = np.mean([measure_width(batch_in_time(2000)) for _ in range(100)])
    assert checked == pytest.approx(np.mean([measure_width([]) for _ in range(100)]), rel=0.2)


@pytest.mark.parametrize("num", [36, 40, 44, 60, 72, 80, 120])
def test_a_percentile_does_not_vanish_with_a_few_more_samples(num):
    rng = np.random.default_rng(6)

    given = ["90" in estimate_percentiles(rng.exponential(1, num), batch_in_time(num)) for _ in range(100)]

    assert np.mean(given) >= 0.9  # the others look alike by chance


def test_groups_without_samples_do_not_count():
    mask = np.array([True, False, True])

    labels = Labels.of(np.array([0, 0, 7], np.uint8))

    assert labels.count(mask).tolist()[:8] == [1, 0, 0, 0, 0, 0, 0, 1]
    assert Runs(np.array([2, 1])).count(mask).tolist() == [1, 1]
