"""Rates and shares with 95 % intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tgis_cli.bench.result import Estimate
from tgis_cli.bench.statistics.distributions import TAIL, Z, student_t_quantile

# Batches of the steady window: long enough that neighbours are nearly independent, as batch means need.
NUM_BATCHES = 10
MIN_EVENTS = 2 * NUM_BATCHES  # fewer leave batches empty by chance


def estimate_rate(amounts: npt.NDArray[np.float64], batch_s: float, num_events: int) -> Estimate:
    """The rate per second by the method of batch means.

    Args:
        amounts: what was done in each batch, which are equally long and follow each other.
        num_events: behind them.
    """
    if batch_s <= 0 or not len(amounts):
        return Estimate(0.0)
    rate = float(amounts.mean()) / batch_s
    if num_events < MIN_EVENTS or len(amounts) < 2:
        return Estimate(rate)
    error = float(amounts.std(ddof=1)) / math.sqrt(len(amounts)) / batch_s
    reach = student_t_quantile(1 - TAIL, len(amounts) - 1) * error
    return Estimate(rate, max(0.0, rate - reach), rate + reach)


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
