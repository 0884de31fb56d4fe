"""An interval for a mean that stays valid even if it is checked after every sample and sampling stops at any time."""

from __future__ import annotations

import math
from collections.abc import Sequence

ALPHA = 0.005  # the chance that the interval ever misses the mean, over all checks together


def find_reach(samples: Sequence[float], alpha: float = ALPHA) -> float:
    """Half the width of the confidence sequence around the mean of the samples; infinite for the first few.

    The samples are taken as normal with unknown mean and variance. For each candidate mean, the likelihood ratio of
    Student's t statistic is averaged over effect sizes (mean divided by deviation) that are standard normal. That is a
    martingale from 1, which ever exceeds 1/alpha with a chance of at most alpha (Ville); candidates for which it does
    are outside the interval. See T. L. Lai, "On confidence sequences", Annals of Statistics 4 (1976), and H. Wang
    and A. Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance", Sequential
    Analysis 44 (2025). Tails that are heavier than normal make it wider, not wrong: the statistic is divided by the
    deviation that they enlarge.
    """
    num = len(samples)
    if num < 2:
        return math.inf
    mean = math.fsum(samples) / num
    return reach_of(num, math.fsum((sample - mean) ** 2 for sample in samples), alpha)


def reach_of(num: int, squares: float, alpha: float = ALPHA) -> float:
    """
    Args:
        squares: sum of the squared differences from the mean.
    """
    # The martingale at a distance d from the mean is √(1/(n+1)) · ((n+1)(W + n·d²) / ((n+1)W + n·d²))^(n/2), with W
    # the squares. It is solved for the d at which it is 1/alpha.
    bound = (math.sqrt(num + 1) / alpha) ** (2 / num)
    if bound >= num + 1:
        return math.inf
    return math.sqrt(squares * (bound - 1) * (num + 1) / (num + 1 - bound) / num)
