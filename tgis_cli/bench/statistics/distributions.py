"""The few quantiles of distributions that intervals need."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2  # outside of an interval, on each side
Z = NormalDist().inv_cdf(1 - TAIL)
REACH = 12.0  # standard deviations; the probability beyond them is negligible


@lru_cache(maxsize=256)
def binomial_ranks(num: int, share: float) -> tuple[int | None, int | None]:
    """The ranks, from 1, of the order statistics between which a quantile of ``num`` independent samples lies.

    With B ~ Binomial(num, share): ``low`` is the largest rank with P(B < low) ≤ 2.5 %, ``high`` the smallest with
    P(B ≥ high) ≤ 2.5 %. ``None`` where no rank is that far out: there are too few samples. The probabilities are
    exact except for terms beyond twelve standard deviations.
    """
    if num < 1:
        return None, None
    mean, deviation = num * share, (num * share * (1 - share)) ** 0.5
    first = max(0, int(mean - REACH * deviation - REACH))
    last = min(num, int(mean + REACH * deviation + REACH))
    counts = np.arange(first, last, dtype=np.float64)
    logs = np.concatenate(([0.0], np.cumsum(np.log((num - counts) / (counts + 1) * (share / (1 - share))))))
    masses = np.exp(logs - logs.max())
    below = np.cumsum(masses) / masses.sum()  # P(B <= first + i)
    above = np.cumsum(masses[::-1])[::-1] / masses.sum()  # P(B >= first + i)
    low = first + int(np.searchsorted(below, TAIL, side="right"))
    high = first + int(np.searchsorted(-above, -TAIL, side="left"))
    return (low if low >= 1 else None), (high if high <= num else None)


@lru_cache(maxsize=256)
def student_t_quantile(probability: float, freedom: int) -> float:
    """A quantile of Student's t distribution, for probabilities above one half.

    With t = √freedom · tan θ, the density in θ is proportional to cos θ to the power of ``freedom - 1``; its integral
    is inverted on a fine grid.
    """
    theta = np.linspace(0.0, min(np.pi / 2, REACH / freedom**0.5), 100_001)
    density = np.cos(theta) ** (freedom - 1)
    area = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return float(freedom**0.5 * np.tan(np.interp(2 * probability - 1, area / area[-1], theta)))
