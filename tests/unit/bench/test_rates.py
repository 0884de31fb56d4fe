"""Rates and how often their intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.figures import make_level
from tgis_cli.bench.result import Estimate
from tgis_cli.bench.statistics.rates import NUM_PARTS, estimate_rate, spread
from timelines import Timeline, closed_loop, healthy

RATE = 10.0
WINDOW_S = 20.0
RUNS = 300


def estimate_poisson(rng: np.random.Generator, call_s: float, told_s: float) -> Estimate:
    """The rate of calls that come at random; they were already coming long before the window."""
    starts = np.cumsum(rng.exponential(1 / RATE, int(1.5 * RATE * (WINDOW_S + 40)))) - 40
    edges = np.linspace(0, WINDOW_S, NUM_PARTS + 1)
    amounts = spread(starts, starts + call_s * rng.lognormal(-0.08, 0.4, len(starts)), edges)
    return estimate_rate(amounts, edges[1], 100, call_s=told_s)


def share_of_hits(call_s: float, told_s: float) -> float:
    rng = np.random.default_rng(1)
    found = [estimate_poisson(rng, call_s, told_s) for _ in range(RUNS)]
    return float(np.mean([one.low <= RATE <= one.high for one in found]))


@pytest.mark.parametrize("call_s", [0.2, 0.8, 1.5, 2.4])
def test_intervals_hold_the_truth_however_long_calls_last(call_s):
    assert share_of_hits(call_s, told_s=call_s) >= 0.91


def test_without_the_duration_of_calls_the_truth_would_often_be_missed():
    assert share_of_hits(5.0, told_s=0.0) < 0.85


def test_calls_that_are_too_long_for_four_batches_have_a_rate_without_an_interval():
    assert estimate_rate(np.full(NUM_PARTS, 2.0), 1.0, 100, call_s=1.6) == Estimate(2.0)
    assert estimate_rate(np.full(NUM_PARTS, 2.0), 1.0, 100, call_s=1.5) == Estimate(2.0, 2.0, 2.0)


def test_long_calls_leave_the_tokens_of_a_closed_loop_their_interval():
    timeline = closed_loop(streams=20, calls_per_stream=5, stagger_s=0.05)  # of 1 s, in a window of 4 s

    level = make_level(timeline.records(), healthy(), Arrivals(concurrency=20), "", is_streamed=True)

    assert level.requests_per_s.low is None
    assert level.output_tokens_per_s.low is not None


def test_long_calls_at_a_rate_leave_no_interval():
    timeline = Timeline()
    for number in range(50):
        timeline.stream(number * 0.1, number * 0.1 + 0.5, [0.1] * 5)
    records = timeline.records()

    level = make_level(records, healthy(), Arrivals(due_s=tuple(sorted(records.due_s))), "", is_streamed=True)

    assert level.output_tokens_per_s.low is None
