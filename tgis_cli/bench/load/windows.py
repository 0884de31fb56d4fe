"""The part of a level in which the load was steady: without the ramp-up before it and the tail after it.

Closed loop: from when each of the first calls has ended (or, in short levels, has got its first token) until the last
moment at which all slots were in use. Open loop: from when nearly all calls that were sent at the start can have ended
(in short levels: from the first end) until the last call is due. A window that keeps less than a third of the level or
of its answers is not used; if none is left, the whole level is the window.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.detail import Window
from tgis_cli.bench.load.records import Records
from tgis_cli.bench.statistics.quantiles import pick_quantile

MIN_SHARE = 1 / 3
SETTLED_SHARE = 0.95  # of the calls that are sent at the start can have ended when a level counts as steady
NO_STEADY_STATE = "The level is too short for a steady state: its figures include ramp-up and tail."


def find_whole_window(records: Records) -> Window:
    return Window(0.0, float(records.end_s.max(initial=0.0)))


def find_steady_window(records: Records, arrivals: Arrivals) -> tuple[Window, str | None]:
    """The steady window; or the whole level, with a sentence that says why."""
    whole = find_whole_window(records)
    answered = records.status == 0
    for window in suggest_windows(records, arrivals):
        is_long = window.end_s - window.start_s >= MIN_SHARE * whole.end_s
        kept = np.count_nonzero(answered & belongs_to(records, window))
        if is_long and kept and kept >= MIN_SHARE * np.count_nonzero(answered):
            return window, None
    return whole, NO_STEADY_STATE if len(records.index) else None


def belongs_to(records: Records, window: Window) -> npt.NDArray[np.bool_]:
    """Which calls belong to a window: those whose middle lies in it.

    Neither long nor short calls are preferred by this, as they would be by "began and ended there".
    """
    middle = (records.sent_s + records.end_s) / 2
    return (middle >= window.start_s) & (middle <= window.end_s)


def suggest_windows(records: Records, arrivals: Arrivals) -> Iterator[Window]:
    """Windows that may be steady, the best first."""
    if not len(records.index):
        return
    if arrivals.concurrency is not None:
        yield from suggest_closed(records, arrivals.concurrency)
    else:
        yield from suggest_open(records)


def suggest_closed(records: Records, concurrency: int) -> Iterator[Window]:
    end = find_last_full(records, concurrency)
    if end is None:
        return
    first_calls = np.argsort(records.due_s, kind="stable")[:concurrency]
    ends = records.end_s[first_calls]
    yield Window(float(ends.max()), end)
    firsts = records.first_s[first_calls]
    yield Window(float(np.where(np.isnan(firsts), ends, firsts).max()), end)


def find_last_full(records: Records, concurrency: int) -> float | None:
    """The last moment at which this many calls were in flight; ``None`` if there was none."""
    times = np.concatenate((records.due_s, records.end_s))
    steps = np.repeat([1, -1], len(records.index))
    order = np.lexsort((-steps, times))  # at the same moment, a slot is used again before it counts as empty
    full = np.flatnonzero(np.cumsum(steps[order]) >= concurrency)
    return float(times[order[full[-1] + 1]]) if len(full) else None


def suggest_open(records: Records) -> Iterator[Window]:
    end = float(records.due_s.max())
    durations = records.end_s - records.due_s
    yield Window(pick_quantile(durations, SETTLED_SHARE), end)
    yield Window(float(records.end_s.min()), end)
