"""Means, rates and shares with 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tgis_cli.bench.result import Estimate
from tgis_cli.bench.statistics.distributions import TAIL, Z, student_t_quantile

NUM_PARTS = 12  # of the steady window: many enough for Student's interval, and 2 or 3 can be joined without a rest
JOINED_PARTS = (12, 6, 4)  # with fewer, the interval would be wider than the rate itself
MIN_DURATIONS = 2.0  # of a request in a part: neighbouring parts with the same requests in progress are alike
MIN_EVENTS = 2 * NUM_PARTS  # with fewer, some parts are empty by chance


def estimate_mean(values: Sequence[float]) -> Estimate:
    """The mean of what is never negative, with Student's interval, which needs two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    half = student_t_quantile(1 - TAIL, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, max(0.0, mean - half), mean + half)


def estimate_rate(amounts: npt.NDArray[np.float64], part_s: float, num_events: int, *, call_s: float = 0.0) -> Estimate:
    """The rate per second by the method of batch means.

    Args:
        amounts: what was done in each of ``NUM_PARTS`` parts, which are equally long and follow each other.
        num_events: how many tokens or requests these amounts count.
        call_s: mean duration of a request, if what it does counts evenly over this time. Parts are joined until they
            are long enough compared with it; if too few of them are left, there is no interval.
    """
    if part_s <= 0:
        return Estimate(0.0)
    length_s = part_s * len(amounts)
    rate = float(amounts.sum()) / length_s
    num = next((num for num in JOINED_PARTS if length_s / num >= MIN_DURATIONS * call_s), None)
    if num_events < MIN_EVENTS or num is None:
        return Estimate(rate)
    return estimate_mean((amounts.reshape(num, -1).sum(axis=1) / (length_s / num)).tolist())


def estimate_share(num_hits: int, num: int) -> Estimate:
    """A share with Wilson's interval, which is sensible also for shares of 0 and 1."""
    if not num:
        return Estimate(math.nan)
    share = num_hits / num
    middle = (share + Z**2 / (2 * num)) / (1 + Z**2 / num)
    reach = Z / (1 + Z**2 / num) * math.sqrt(share * (1 - share) / num + Z**2 / (4 * num**2))
    return Estimate(share, max(0.0, middle - reach), min(1.0, middle + reach))


def spread(
    starts: npt.NDArray[np.float64],
    ends: npt.NDArray[np.float64],
    edges: npt.NDArray[np.float64],
    weights: npt.NDArray[Any] | None = None,
) -> npt.NDArray[np.float64]:
    """How much was done between each two edges, if each weight is done evenly from its start to its end.

    Args:
        weights: 1 each if left out.
    """
    if weights is None:
        weights = np.ones(len(starts))
    durations = np.maximum(ends - starts, 1e-9)
    done = [float(np.dot(np.clip((edge - starts) / durations, 0.0, 1.0), weights)) for edge in edges]
    return np.diff(np.array(done))
