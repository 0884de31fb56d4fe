"""When tokens arrived, rebuilt from the records of a level in one pass over its gaps.

Levels have up to ten million gaps, so they are handled in parts, and what is kept of each gap is its own four bytes and
one more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tgis_cli.bench.load.detail import Window
from tgis_cli.bench.load.records import Doubles, Ints, Records
from tgis_cli.bench.statistics.quantiles import NUM_BATCHES as NUM_LABELS
from tgis_cli.bench.statistics.quantiles import Clusters, Labels, Runs
from tgis_cli.bench.statistics.rates import spread

MOST_GAPS = 1 << 18  # handled at once: about 20 MB with what is derived from them; a call with more is handled alone
# Bins of latencies over time: 2 % wide, from a microsecond to three hours.
MIN_S, MAX_S, BIN_LOG = 1e-6, 1e4, np.log(1.02)
NUM_BINS = int(np.log(MAX_S / MIN_S) / BIN_LOG) + 2  # what is shorter is in the first

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """Some calls and their gaps."""

    calls: slice
    gaps: slice
    gap_s: Floats
    arrived_s: Doubles  # when the token after each gap arrived


def iterate_parts(records: Records) -> Iterator[Part]:
    ends = np.cumsum(records.num_gaps)
    first, num_done, num_calls = 0, 0, len(ends)
    while first < num_calls:
        last = max(first + 1, int(np.searchsorted(ends, num_done + MOST_GAPS, side="right")))
        calls, gaps = slice(first, last), slice(num_done, int(ends[last - 1]))
        yield Part(calls, gaps, records.gap_s[gaps], find_arrivals(records, calls, gaps))
        first, num_done = last, gaps.stop


def find_arrivals(records: Records, calls: slice, gaps: slice) -> Doubles:
    sizes = records.num_gaps[calls]
    passed = np.cumsum(records.gap_s[gaps], dtype=np.float64)
    before = np.concatenate(([0.0], passed))[np.cumsum(sizes) - sizes]  # at the first token of each call
    arrived = passed + np.repeat(records.first_s[calls] - before, sizes)
    arrived_s: Doubles = np.minimum(arrived, np.repeat(records.end_s[calls], sizes))  # gaps are rounded to 7 digits
    return arrived_s


class LatencyOverTime:
    """Percentiles of latencies for each bucket of time, accurate to 2 %, in memory that does not grow with them."""

    def __init__(self, num_buckets: int) -> None:
        self._counts = np.zeros((num_buckets, NUM_BINS), np.int64)

    def add(self, buckets: Ints, latencies: npt.NDArray[np.floating[Any]]) -> None:
        bins = (np.log(np.clip(latencies, MIN_S, MAX_S) / MIN_S) / BIN_LOG).astype(np.int64)
        size = self._counts.size
        self._counts += np.bincount(buckets * NUM_BINS + bins, minlength=size).reshape(self._counts.shape)

    def percentile(self, share: float) -> list[float | None]:
        """The percentile of each bucket; ``None`` where it is empty."""
        passed = np.cumsum(self._counts, axis=1)
        bins = np.argmax(passed >= np.maximum(1, np.ceil(share * passed[:, -1:])), axis=1)
        values = MIN_S * np.exp((bins + 0.5) * BIN_LOG)
        return [float(value) if num else None for value, num in zip(values, passed[:, -1], strict=True)]


@dataclass(slots=True)
class Tokens:
    """What is known about the tokens of a level."""

    by_batch: Doubles  # output tokens in each batch of the steady window
    by_step: Doubles  # and in each step of the whole level
    gaps: Floats  # of the steady window
    clusters: list[Clusters]  # of these gaps
    itl: LatencyOverTime
    is_good: dict[float, npt.NDArray[np.bool_]] = field(default_factory=dict)  # by limit: see ``read_tokens``


def find_buckets(moments: Doubles, edges: Doubles) -> Ints:
    """The bucket in which each moment lies, or -1; all are equally long, and the last edge belongs to the last one."""
    num = len(edges) - 1
    buckets: Ints = np.floor((moments - edges[0]) * (num / (edges[-1] - edges[0]))).astype(np.int64)
    buckets[moments == edges[-1]] = num - 1
    buckets[(buckets < 0) | (buckets >= num)] = -1
    return buckets


def count_by_bucket(buckets: Ints, num: int) -> Doubles:
    return np.bincount(buckets[buckets >= 0], minlength=num).astype(np.float64)


def read_tokens(
    records: Records, steady: Window, batch_edges: Doubles, step_edges: Doubles, limits: Sequence[float]
) -> Tokens:
    """Go over all tokens once.

    In the steps a token counts when it arrives. In the batches it counts over the time since the token before it, or
    since the call was sent: from streams in lockstep many tokens arrive at once, and it would be chance on which side
    of a window's border. The tokens of unary calls count evenly from the call's start to its end.

    Args:
        limits: seconds; for each of them ``is_good`` says of which calls at least 95 % of the gaps keep to it.
    """
    num_steps = len(step_edges) - 1
    has_first = np.isfinite(records.first_s)
    unary = spread_unary(records, batch_edges), spread_unary(records, step_edges)
    by_batch = unary[0] + spread(records.sent_s[has_first], records.first_s[has_first], batch_edges)
    by_step = unary[1] + count_by_bucket(find_buckets(records.first_s[has_first], step_edges), num_steps)
    itl = LatencyOverTime(num_steps)
    label_edges = np.linspace(steady.start_s, steady.end_s, NUM_LABELS + 1)
    kept: list[Floats] = []
    labels: list[npt.NDArray[np.uint8]] = []
    sizes = np.zeros(len(records.index), np.int64)  # kept gaps of each call
    good = {limit: np.zeros(len(records.index), np.int64) for limit in limits}
    for part in iterate_parts(records):
        buckets = find_buckets(part.arrived_s, step_edges)
        by_step += count_by_bucket(buckets, num_steps)
        itl.add(buckets[buckets >= 0], part.gap_s[buckets >= 0])
        by_batch += spread_tokens(part, batch_edges)
        label = find_buckets(part.arrived_s, label_edges)
        kept.append(part.gap_s[label >= 0])
        labels.append(label[label >= 0].astype(np.uint8))
        sizes[part.calls] = sum_by_call(label >= 0, records.num_gaps[part.calls])
        for limit, counts in good.items():
            counts[part.calls] = sum_by_call(part.gap_s <= limit, records.num_gaps[part.calls])
    clusters: list[Clusters] = [Runs(sizes[sizes > 0]), Labels.of(join(labels, np.uint8))]
    is_good = {limit: counts >= 0.95 * records.num_gaps for limit, counts in good.items()}
    return Tokens(by_batch, by_step, join(kept, np.float32), clusters, itl, is_good)


def spread_tokens(part: Part, edges: Doubles) -> Doubles:
    """The tokens of each bucket, each spread over the gap before it."""
    num = len(edges) - 1
    per_s = num / (edges[-1] - edges[0])
    before_s = part.arrived_s - part.gap_s
    first, last = (np.floor((moments - edges[0]) * per_s) for moments in (before_s, part.arrived_s))
    is_split = first != last
    whole = last[~is_split]
    whole = whole[(whole >= 0) & (whole < num)].astype(np.int64)
    return count_by_bucket(whole, num) + spread(before_s[is_split], part.arrived_s[is_split], edges)


def spread_unary(records: Records, edges: Doubles) -> Doubles:
    """The tokens of answers that came at once."""
    unary = ~np.isfinite(records.first_s) & (records.output_tokens > 0)
    return spread(records.sent_s[unary], records.end_s[unary], edges, records.output_tokens[unary])


def sum_by_call(values: npt.NDArray[Any], sizes: Ints) -> npt.NDArray[Any]:
    """The sum of each call's values, which follow each other in the order of the calls; a call may have none."""
    dtype = np.float64 if values.dtype.kind == "f" else np.int64
    sums = np.zeros(len(sizes), dtype)
    starts = (np.cumsum(sizes) - sizes)[sizes > 0]
    if len(starts):
        sums[sizes > 0] = np.add.reduceat(values, starts, dtype=dtype)
    return sums


def join(parts: list[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
