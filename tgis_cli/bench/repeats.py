"""Figures from a few repetitions: the mean, and Student's interval around it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tgis_cli.bench.result import Estimate, Figure
from tgis_cli.bench.statistics.distributions import TAIL, student_t_quantile


def estimate_mean(values: Sequence[float]) -> Estimate:
    """The mean of what is never negative, with its 95 % interval, which needs two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    half = student_t_quantile(1 - TAIL, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, max(0.0, mean - half), mean + half)


def divide(amount: float, by: Estimate) -> Estimate:
    """An amount per an estimated time. An interval that reaches down to 0 has no upper end."""
    high = amount / by.low if by.low else None
    return Estimate(amount / by.value, amount / by.high if by.high else None, high)


def make_figure(group: str, name: str, unit: str, better: str, values: Sequence[float]) -> Figure:
    return Figure(group, name, unit, better, estimate_mean(values), len(values))
