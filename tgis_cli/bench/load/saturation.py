"""Whether a server kept up with an open loop."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tgis_cli.bench.load.columns import CUT
from tgis_cli.bench.load.records import Doubles, Records

RAMP_UP = 0.3  # of the arrivals do not count: latencies rise while an idle server fills up, which is not a trend
EARLY, LATE = (RAMP_UP, 0.5), (0.8, 1.0)  # parts of the arrivals whose latencies are compared
MIN_CALLS = 11  # after the ramp-up; in fewer, not even latencies in ascending order are a significant trend
DEVIATIONS = 3.0  # standard deviations of the rank correlation of calls without a trend
MIN_RISE = 1.4  # of the median latency from the early part to the late one; a full server may have a short queue
MIN_GROWTH = 0.1  # of the backlog, as a share of the later half of the calls; also the share that may stay unserved


def is_saturated(records: Records, num_unserved: int = 0) -> bool:
    """Whether ends fell behind arrivals: latencies and the calls in flight grew as long as requests came.

    A server that keeps up answers late calls as fast as early ones, so that latencies have no trend after the ramp-up.
    In levels of 10 s with calls of 2 s, it finds six in ten servers at twice their capacity at 2 requests/s, eight in
    ten at 4, and nearly all from 8 on; of servers at four fifths of it, it suspects at most one in thirty.

    Args:
        num_unserved: requests that the level did not send, or did not wait for.
    """
    if num_unserved > MIN_GROWTH * len(records.index):
        return True
    kept = records.status != CUT
    due, ends = records.due_s[kept], records.end_s[kept]
    if not len(due) or due.max() == due.min():
        return False
    place = (due - due.min()) / (due.max() - due.min())
    latency = ends - due
    later = place >= RAMP_UP
    num_later = int(np.count_nonzero(later))
    if num_later < MIN_CALLS or correlate_ranks(due[later], latency[later]) * math.sqrt(num_later - 1) <= DEVIATIONS:
        return False
    early, late = (latency[(place >= start) & (place <= end)] for start, end in (EARLY, LATE))
    has_risen = len(early) > 0 and float(np.median(late)) > MIN_RISE * float(np.median(early))
    middle = (due.min() + due.max()) / 2
    growth = count_in_flight(due, ends, due.max()) - count_in_flight(due, ends, middle)
    return has_risen and growth > MIN_GROWTH * int(np.count_nonzero(due > middle))


def correlate_ranks(first: Doubles, second: Doubles) -> float:
    """Spearman's coefficient; 0 if one of them is constant. Without a trend, it varies by 1/√(n - 1)."""
    ranks = center_ranks(first), center_ranks(second)
    scale = math.sqrt(float(np.dot(ranks[0], ranks[0])) * float(np.dot(ranks[1], ranks[1])))
    return float(np.dot(*ranks)) / scale if scale else 0.0


def center_ranks(values: Doubles) -> npt.NDArray[np.float64]:
    """Ranks around 0; equal values have the mean of theirs."""
    ordered = np.sort(values)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    ranks: npt.NDArray[np.float64] = (below + up_to - len(values)) / 2
    return ranks


def count_in_flight(starts: Doubles, ends: Doubles, moment: float) -> int:
    return int(np.count_nonzero((starts <= moment) & (ends > moment)))
