"""Figures from a few repetitions: the mean, and Student's interval around it."""

from __future__ import annotations

from collections.abc import Sequence

from tgis_cli.bench.result import Estimate, Figure
from tgis_cli.bench.statistics.rates import estimate_mean


def divide(amount: float, by: Estimate) -> Estimate:
    """An amount per an estimated time. An interval that reaches down to 0 has no upper end."""
    high = amount / by.low if by.low else None
    return Estimate(amount / by.value, amount / by.high if by.high else None, high)


def make_figure(group: str, name: str, unit: str, better: str, values: Sequence[float]) -> Figure:
    return Figure(group, name, unit, better, estimate_mean(values), len(values))
