"""How often a server that falls behind is found out, and one that keeps up is blamed."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from tgis_cli.bench.load.saturation import is_saturated
from timelines import open_loop

LEVEL_S = 10.0  # the default
CALL_S = 2.0
RUNS = 60


def share_saturated(rate: float, load: float, seed: int = 1) -> float:
    """How often servers look saturated whose capacity is ``rate / load``, when requests come at random."""
    rng = np.random.default_rng(seed)
    return float(np.mean([is_saturated(serve(rng, rate, load).records()) for _ in range(RUNS)]))


def serve(rng, rate, load):
    """A server with so many slots that a call takes about ``CALL_S``; others wait for their turn."""
    num_slots = max(1, round(rate * CALL_S / load))
    moments = np.cumsum(rng.exponential(1 / rate, int(3 * rate * LEVEL_S)))
    moments = moments[moments < LEVEL_S]
    free_at, durations = [0.0] * num_slots, []
    for moment in moments:
        end = max(moment, heapq.heappop(free_at)) + num_slots * load / rate * rng.lognormal(-0.08, 0.4)
        heapq.heappush(free_at, end)
        durations.append(end - moment)
    return open_loop(moments, durations)


@pytest.mark.parametrize(("rate", "least"), [(2, 0.4), (4, 0.75), (8, 0.9), (16, 0.95)])
def test_most_servers_at_twice_their_capacity_are_found_out(rate, least):
    assert share_saturated(rate, 2.0) >= least


@pytest.mark.parametrize("rate", [2, 8, 16])
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_few_servers_that_keep_up_are_blamed(rate, load):
    assert share_saturated(rate, load) <= 0.05


def test_equal_latencies_are_no_trend():
    moments = np.arange(0.0, LEVEL_S, 0.25)

    assert not is_saturated(open_loop(moments, np.full(len(moments), CALL_S)).records())


def test_a_rise_that_is_small_is_no_failure_to_keep_up():
    moments = np.arange(0.0, LEVEL_S, 0.25)

    assert not is_saturated(open_loop(moments, CALL_S + 0.05 * moments).records())
