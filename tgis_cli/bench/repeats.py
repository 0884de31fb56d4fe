"""Figures from a few repetitions: the mean, and Student's interval around it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tgis_cli.bench.result import Estimate, Figure

# 97.5 % quantiles of Student's distribution by degrees of freedom, from 1
QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
NORMAL = 1.960


def estimate_mean(values: Sequence[float]) -> Estimate:
    """The mean with its 95 % interval, which needs two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    freedom = len(values) - 1
    quantile = QUANTILES[freedom - 1] if freedom <= len(QUANTILES) else NORMAL
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, max(0.0, mean - half), mean + half)


def divide(amount: float, by: Estimate) -> Estimate:
    """An amount per an estimated time. An interval that reaches down to 0 has no upper end."""
    high = amount / by.low if by.low else None
    return Estimate(amount / by.value, amount / by.high if by.high else None, high)


def make_figure(group: str, name: str, unit: str, better: str, values: Sequence[float]) -> Figure:
    return Figure(group, name, unit, better, estimate_mean(values), len(values))
