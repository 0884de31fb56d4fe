"""Two configurations in alternating rounds: which one is faster, and how small a difference this machine can show.

The speed of some machines varies by itself, for example if others use the same cores. There, measuring once before a
change and once after it does not show its effect. So both sides are measured in pairs of consecutive rounds, A B B A
and so on, and a slow period slows both. Each pair gives one log ratio, and after every pair a confidence sequence gives
an interval for their mean.

This module knows nothing of servers: a side is a function that measures one round.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import NormalDist

from tgis_cli.bench.report.units import write_change
from tgis_cli.bench.result import Estimate, Figure
from tgis_cli.bench.statistics.sequences import ALPHA, find_reach, reach_of
from tgis_server.words.sizes import format_count

MAX_PAIRS = 60  # enough to find 10 % in 95 of 100 comparisons where rounds vary by 8 % (tests/unit/bench/test_ab.py)
EQUAL_WITHIN = 0.02
METRIC = "output_tokens_per_s"
POWER = 0.9  # the probability of finding the smallest difference
CONFIDENCE = f"{(1 - ALPHA) * 100:g} %"

Measure = Callable[[], float]


class RoundsEnded(Exception):
    """Raised by a measuring function: there are to be no more rounds, and the current one does not count."""


class Verdict(StrEnum):
    DIFFERENT = "different"
    EQUAL = "equal"
    UNDECIDED = "undecided"


@dataclass(slots=True)
class Comparison:
    """The pairs that have been measured so far."""

    equal_within: float = EQUAL_WITHIN
    max_pairs: int = MAX_PAIRS
    values_a: list[float] = field(default_factory=list)
    values_b: list[float] = field(default_factory=list)

    def add_pair(self, a: float, b: float) -> None:
        self.values_a.append(a)
        self.values_b.append(b)

    @property
    def num_pairs(self) -> int:
        return len(self.values_b)

    @property
    def log_ratios(self) -> list[float]:
        return [math.log(b / a) for a, b in zip(self.values_a, self.values_b, strict=True)]

    @property
    def ratio(self) -> Estimate:
        """B / A, with the confidence sequence."""
        logs = self.log_ratios
        if not logs:
            return Estimate(math.nan)
        mean, reach = math.fsum(logs) / len(logs), find_reach(logs)
        if math.isinf(reach):
            return Estimate(math.exp(mean))
        return Estimate(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))

    @property
    def verdict(self) -> Verdict:
        """Equality comes first: a difference that is certainly within ``equal_within`` does not count as one."""
        interval = self.ratio.interval
        if interval is None:
            return Verdict.UNDECIDED
        low, high = interval
        if low >= 1 / (1 + self.equal_within) and high <= 1 + self.equal_within:
            return Verdict.EQUAL
        return Verdict.DIFFERENT if low > 1 or high < 1 else Verdict.UNDECIDED

    @property
    def noise(self) -> float | None:
        """Standard deviation of the log ratio of one pair; ``None`` before the second pair."""
        return statistics.stdev(self.log_ratios) if self.num_pairs > 1 else None

    @property
    def smallest_difference(self) -> float | None:
        """The smallest difference, as a share, that ``max_pairs`` pairs with this noise show nine times out of ten.

        ``None`` if so few pairs cannot show any.
        """
        noise, num = self.noise, self.max_pairs
        reach = math.inf if noise is None else reach_of(num, noise**2 * (num - 1))
        if noise is None or math.isinf(reach):
            return None
        return math.exp(reach + NormalDist().inv_cdf(POWER) * noise / math.sqrt(num)) - 1


def compare_ab(
    measure_a: Measure,
    measure_b: Measure,
    *,
    max_pairs: int = MAX_PAIRS,
    equal_within: float = EQUAL_WITHIN,
    on_pair: Callable[[Comparison], None] = lambda _: None,
) -> Comparison:
    """Measure both sides in turn until they are known to differ or to be equal, or the limit is reached.

    Args:
        measure_a: measures one round; the value is above 0.
        equal_within: differences up to this share count as equal, such as 0.02.
        on_pair: called after each pair.
    """
    comparison = Comparison(equal_within, max_pairs)
    for number in range(max_pairs):
        try:
            if number % 2:
                b, a = measure_b(), measure_a()
            else:
                a, b = measure_a(), measure_b()
        except RoundsEnded:
            break
        comparison.add_pair(a, b)
        on_pair(comparison)
        if comparison.verdict is not Verdict.UNDECIDED:
            break
    return comparison


def describe_progress(comparison: Comparison) -> str:
    """``pair 8 of 60: B/A 1.03 (0.97 to 1.10); the pairs vary by 4.0 %``."""
    ratio = comparison.ratio
    interval = " ({:.3f} to {:.3f})".format(*ratio.interval) if ratio.interval else ""
    noise = comparison.noise
    varies = f"; the pairs vary by {noise * 100:.1f} %" if noise is not None else ""
    return f"pair {comparison.num_pairs} of {comparison.max_pairs}: B/A {ratio.value:.3f}{interval}{varies}"


def describe_verdict(comparison: Comparison, metric: str, better: str) -> list[str]:
    """Sentences: what was found, and what could have been found.

    Args:
        better: ``higher`` or ``lower``.
    """
    ratio = comparison.ratio
    if not comparison.num_pairs:
        return ["No pair of rounds was measured."]
    interval = f"{CONFIDENCE} interval {write_change(*ratio.interval)}" if ratio.interval else "too few for an interval"
    pairs = format_count(comparison.num_pairs, "pair")
    facts = f"{write_change(ratio.value)} in {metric} after {pairs} of rounds ({interval})"
    is_better = (ratio.value > 1) == (better == "higher")
    first = {
        Verdict.DIFFERENT: f"B is {'better' if is_better else 'worse'} than A: {facts}.",
        Verdict.EQUAL: f"A and B are equal within {comparison.equal_within * 100:g} %: {facts}.",
        Verdict.UNDECIDED: f"It is undecided whether A and B differ: {facts}.",
    }[comparison.verdict]
    smallest = comparison.smallest_difference
    if smallest is None:
        is_cut = comparison.num_pairs < comparison.max_pairs
        remedy = "let it run longer" if is_cut else f"allow more than {comparison.max_pairs}"
        return [first, f"So few pairs cannot show a difference: {remedy}."]
    return [
        first,
        f"On this machine, {comparison.max_pairs} pairs find a difference of {smallest * 100:.1f} % in nine "
        "cases out of ten.",
    ]


def make_figures(comparison: Comparison, titles: Sequence[str], metric: str, unit: str, better: str) -> list[Figure]:
    """The geometric mean of each side, and the ratio, whose interval is that of the confidence sequence."""
    means = [statistics.geometric_mean(values) for values in (comparison.values_a, comparison.values_b) if values]
    figures = [
        Figure(title, metric, unit, better, Estimate(mean), comparison.num_pairs)
        for title, mean in zip(titles, means, strict=False)
    ]
    return [*figures, Figure("B / A", "ratio", "", better, comparison.ratio, comparison.num_pairs)]
