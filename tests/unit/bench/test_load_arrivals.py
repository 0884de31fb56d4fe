"""When the calls of a level are due."""

from __future__ import annotations

import itertools
import statistics

import pytest

from tgis_cli.bench.load.arrivals import ArrivalProcess, Pacing
from tgis_cli.bench.load.calls import Arrivals


def intervals(pacing: Pacing, rate: float = 50.0) -> list[float]:
    moments = pacing.make_open(rate, 0).due_s
    assert moments is not None
    return [later - earlier for earlier, later in itertools.pairwise(moments)]


def test_a_constant_rate_has_equal_intervals_and_the_calls_of_its_duration():
    moments = Pacing(ArrivalProcess.CONSTANT, max_s=2.0).make_open(4.0, 0).due_s

    assert moments == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75])


def test_poisson_arrivals_have_the_rate_and_the_spread_of_an_exponential():
    found = intervals(Pacing(max_calls=20_000))

    assert statistics.mean(found) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(found) == pytest.approx(1 / 50, rel=0.03)


def test_a_low_burstiness_spreads_the_intervals_and_keeps_the_rate():
    found = intervals(Pacing(burstiness=0.25, max_calls=20_000))

    assert statistics.mean(found) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(found) == pytest.approx(2 / 50, rel=0.08)


def test_the_same_seed_gives_the_same_moments():
    assert Pacing(seed=4, max_s=5).make_open(9.0, 0) == Pacing(seed=4, max_s=5).make_open(9.0, 0)
    assert Pacing(seed=4, max_s=5).make_open(9.0, 0) != Pacing(seed=5, max_s=5).make_open(9.0, 0)


def test_whichever_limit_comes_first_ends_the_level():
    assert len(Pacing(ArrivalProcess.CONSTANT, max_calls=3, max_s=10).make_open(10.0, 0).due_s or ()) == 3
    assert len(Pacing(ArrivalProcess.CONSTANT, max_calls=300, max_s=1.0).make_open(10.0, 0).due_s or ()) == 10


def test_a_trace_is_replayed_at_its_speed():
    arrivals = Pacing().make_trace([0.0, 1.0, 4.0], 2.0)

    assert (arrivals.due_s, arrivals.first_index, arrivals.concurrency) == ((0.0, 0.5, 2.0), 0, None)


def test_an_open_loop_knows_how_many_calls_it_has():
    assert Pacing(max_calls=50).make_open(2.0, 0).max_calls == 50
    assert Pacing(ArrivalProcess.CONSTANT, max_s=1.0).make_open(10.0, 0).max_calls == 10
    assert Pacing().make_trace([0.0, 1.0, 4.0], 1.0).max_calls == 3


def test_a_closed_loop_passes_its_limits_on():
    arrivals = Pacing(max_calls=100, max_s=3.0).make_closed(8, 1)

    assert (arrivals.concurrency, arrivals.max_calls, arrivals.max_s, arrivals.due_s) == (8, 100, 3.0, None)
    assert arrivals.limit_s is None


@pytest.mark.parametrize(
    ("arrivals", "limit_s"),
    [
        (Pacing(max_s=10.0).make_open(2.0, 0), 70.0),
        (Pacing(max_s=300.0).make_open(2.0, 0), 600.0),
        (Pacing(ArrivalProcess.CONSTANT, max_calls=21).make_open(1.0, 0), 80.0),
        (Pacing().make_trace([0.0, 100.0], 1.0), 200.0),
    ],
)
def test_an_open_loop_waits_a_minute_for_answers_or_as_long_as_it_has_sent(arrivals: Arrivals, limit_s: float):
    assert arrivals.limit_s == limit_s
