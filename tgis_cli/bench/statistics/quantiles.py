"""Percentiles with confidence intervals, also of samples that are not independent.

The interval of a percentile is that between two order statistics, whose ranks follow from the binomial distribution; it
needs no assumption about the shape of the latencies. Its ranks are those of the *effective* number of samples
(Woodruff, "Confidence intervals for medians and other position measures", 1952; Korn and Graubard, "Confidence
intervals for proportions with small expected number of positive counts estimated from survey data", 1998): samples that
belong together, such as the gaps of one request or of one second, say less than as many independent ones. How much less
follows from how much the share of samples below the percentile differs between clusters. If there are several ways to
group the samples, the one that leaves the fewest effective samples counts.

A percentile is given only if both ends of its interval exist. The effective samples needed are 6 for p50, 36 for
p90, 72 for p95, 368 for p99, 3,688 for p99.9 (share^n ≤ 2.5 %).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tgis_cli.bench.result import PERCENTILES, Estimate
from tgis_cli.bench.statistics.distributions import TAIL, Z, binomial_ranks, student_t_quantile

NUM_BATCHES = 20  # the spread between batches needs more of them than a rate needs parts (12); none are joined
# Fewer samples do not show how alike they are, and count as independent. p95 needs 72, and p90 half of that: with a
# lower number here, p90 would be given for some number of samples, and not for a few more.
MIN_BATCHED = 72
MIN_BATCH = 4
CHUNK = 1 << 20  # labels that are counted at once: numpy widens them to 8 bytes

Samples = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


class Clusters(Protocol):
    """Samples in groups of those that may be alike."""

    def count(self, mask: Mask) -> Counts:
        """The samples of each group for which ``mask`` is true."""

    @property
    def sizes(self) -> Counts: ...


@dataclass(frozen=True, slots=True)
class Runs:
    """Groups of consecutive samples."""

    sizes: Counts  # none is 0

    def count(self, mask: Mask) -> Counts:
        return np.add.reduceat(mask, np.cumsum(self.sizes) - self.sizes, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Labels:
    """Groups by the small number that each sample has."""

    labels: npt.NDArray[np.uint8]
    sizes: Counts

    @classmethod
    def of(cls, labels: npt.NDArray[np.uint8]) -> Labels:
        return cls(labels, count_labels(labels))

    def count(self, mask: Mask) -> Counts:
        return count_labels(self.labels, mask)


def count_labels(labels: npt.NDArray[np.uint8], mask: Mask | None = None) -> Counts:
    total = np.zeros(256, np.int64)
    for start in range(0, len(labels), CHUNK):
        part = labels[start : start + CHUNK]
        total += np.bincount(part if mask is None else part[mask[start : start + CHUNK]], minlength=256)
    return total


def batch_in_time(num: int) -> list[Clusters]:
    """Batches of equal size of samples that are in the order of time; none if there are too few samples."""
    if num < MIN_BATCHED:
        return []
    bounds = np.linspace(0, num, min(NUM_BATCHES, num // MIN_BATCH) + 1).astype(np.int64)
    return [Runs(np.diff(bounds))]


def estimate_percentiles(samples: Samples, clusterings: Sequence[Clusters] = ()) -> dict[str, Estimate]:
    """The percentiles for which there are enough samples, each with its 95 % interval.

    A percentile is the smallest sample that at least its share of the samples does not exceed.

    Args:
        samples: any number of them; one copy is made.
        clusterings: ways in which samples may be alike; without one, they are independent.
    """
    num = len(samples)
    if not num:
        return {}
    values = pick_ranks(samples, [math.ceil(num * share) for share in PERCENTILES.values()])
    ranks: dict[str, tuple[int, int]] = {}
    for (name, share), value in zip(PERCENTILES.items(), values, strict=True):
        effective = count_effective(samples <= value, clusterings, share) if can_bound(num, share) else 0
        low, high = binomial_ranks(effective, share)
        if low is not None and high is not None:
            ranks[name] = (max(1, low * num // effective), min(num, -(-high * num // effective)))
    bounds = pick_ranks(samples, [rank for pair in ranks.values() for rank in pair])
    by_name = dict(zip(PERCENTILES, values, strict=True))
    return {
        name: Estimate(by_name[name], low, high)
        for name, low, high in zip(ranks, bounds[::2], bounds[1::2], strict=True)
    }


def can_bound(num: int, share: float) -> bool:
    """Whether an interval exists for this many independent samples."""
    return share**num <= TAIL


def pick_ranks(samples: Samples | Sequence[float], ranks: Sequence[int]) -> list[float]:
    """The order statistics of these ranks, from 1, without sorting all samples."""
    if not ranks:
        return []
    parted = np.partition(np.asarray(samples), sorted({rank - 1 for rank in ranks}))
    return [float(parted[rank - 1]) for rank in ranks]


def pick_quantile(samples: Samples | Sequence[float], share: float) -> float:
    """The smallest sample that at least its share of the samples, of which there are some, does not exceed."""
    return pick_ranks(samples, [max(1, math.ceil(len(samples) * share))])[0]


def count_effective(below: Mask, clusterings: Sequence[Clusters], share: float) -> int:
    """The number of independent samples that would tell as much about a percentile.

    Args:
        below: whether each sample is at most the percentile.
        share: the percentile's share.
    """
    num = len(below)
    return min([num, *(int(num / measure_design_effect(below, each, share)) for each in clusterings)])


def measure_design_effect(below: Mask, clusters: Clusters, share: float) -> float:
    """By how much grouping multiplies the variance of the share of samples below a percentile; at least 1.

    The variance between clusters has few degrees of freedom, for which it is enlarged as Student's t is wider than the
    normal distribution; clusters that differ no more than by chance cost nothing.
    """
    is_used = clusters.sizes > 0
    sizes = clusters.sizes[is_used]
    num, num_clusters = len(below), len(sizes)
    if num_clusters < 2:
        return 1.0
    counts = clusters.count(below)[is_used]
    mean = counts.sum() / num
    variance = num_clusters / (num_clusters - 1) * float(np.square(counts - mean * sizes).sum()) / num**2
    effect = variance / (share * (1 - share) / num)
    widening = student_t_quantile(1 - TAIL, num_clusters - 1) / Z
    return effect * widening**2 if effect > 1 else 1.0
