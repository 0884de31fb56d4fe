"""Whether a server kept up with a rate at which requests came whatever it did."""

from __future__ import annotations

import math

import numpy as np

from tgis_cli.bench.load.columns import CUT
from tgis_cli.bench.load.records import Doubles, Records

MIN_CALLS = 20  # in the later half of the level; fewer say nothing about growth
MIN_GROWTH = 0.05  # of the calls of the later half: a smaller backlog is no failure to keep up
DEVIATIONS = 3.0  # by which random arrivals seldom change the number in flight


def is_saturated(records: Records) -> bool:
    """Whether the calls in flight became more and more while requests came, so that ends fell behind arrivals.

    The numbers in flight in the middle and at the end of the arrivals are compared. In a steady state each of them
    varies like a Poisson variable, or somewhat more in a queue; their difference must be beyond that.
    """
    sent = records.due_s[records.status != CUT]
    ends = records.end_s[records.status != CUT]
    if not len(sent):
        return False
    last = float(sent.max())
    middle = (float(sent.min()) + last) / 2
    num_later = int(np.count_nonzero(sent > middle))
    before, after = (count_in_flight(sent, ends, moment) for moment in (middle, last))
    growth = after - before
    return (
        num_later >= MIN_CALLS
        and growth > MIN_GROWTH * num_later
        and growth > DEVIATIONS * math.sqrt(before + after + 1)
    )


def count_in_flight(starts: Doubles, ends: Doubles, moment: float) -> int:
    return int(np.count_nonzero((starts <= moment) & (ends > moment)))
