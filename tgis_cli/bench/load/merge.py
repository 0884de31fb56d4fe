"""Joins the columns of all workers to the records of a level."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tgis_cli.bench.load.columns import Columns, WorkerHealth, read_peak_bytes
from tgis_cli.bench.load.records import Doubles, GeneratorHealth, Ints, Records

Floats = npt.NDArray[np.float32]


def merge_columns(parts: list[Columns], start_s: float) -> Records:
    """
    Args:
        start_s: when the level started, by the monotonic clock.
    """
    end_s = join_doubles(part.end_s for part in parts)
    order = np.argsort(end_s, kind="stable")

    def times(columns: Iterable[array[float]]) -> Doubles:
        return join_doubles(columns)[order] - start_s

    def ints(columns: Iterable[array[int]]) -> Ints:
        return join_ints(columns)[order]

    sent_s = times(part.sent_s for part in parts)
    num_gaps = join_ints(part.num_gaps for part in parts)
    gaps = [np.frombuffer(part.gap_s, np.float32) for part in parts if part.gap_s]
    texts: dict[int, str] = {}
    for part in parts:
        texts = part.texts | texts
    return Records(
        index=ints(part.index for part in parts),
        due_s=times(part.due_s for part in parts),
        sent_s=np.where(np.isnan(sent_s), end_s[order] - start_s, sent_s),
        first_s=times(part.first_s for part in parts),
        end_s=end_s[order] - start_s,
        status=ints(part.status for part in parts),
        input_tokens=ints(part.input_tokens for part in parts),
        output_tokens=ints(part.output_tokens for part in parts),
        asked_input=ints(part.asked_input for part in parts),
        asked_output=ints(part.asked_output for part in parts),
        gap_s=reorder(np.concatenate([np.empty(0, np.float32), *gaps]), num_gaps, order),
        num_gaps=num_gaps[order],
        texts=texts,
        started_at=start_s,
    )


def reorder(gaps: Floats, num_gaps: Ints, order: Ints) -> Floats:
    """The gaps of all calls in another order of the calls. An index of all gaps would take twice their own memory."""
    stops = np.cumsum(num_gaps)
    if np.array_equal(order, np.arange(len(order))):
        return gaps
    ordered, begin = np.empty_like(gaps), 0
    for call in order.tolist():
        size = int(num_gaps[call])
        ordered[begin : begin + size] = gaps[stops[call] - size : stops[call]]
        begin += size
    return ordered


def merge_health(parts: list[WorkerHealth], columns: list[Columns], cut_reason: str = "") -> GeneratorHealth:
    """That of all workers. The memory includes this process, which merges their measurements."""
    lag_s = join_doubles(part.sent_s for part in columns) - join_doubles(part.due_s for part in columns)
    return GeneratorHealth(
        workers=len(parts),
        send_lag_s=lag_s[np.isfinite(lag_s)],  # a lost connection is not the generator's delay
        loop_lag_s=join_doubles(part.loop_lag_s for part in parts),
        cpu_share=max((part.cpu_s / part.wall_s for part in parts if part.wall_s > 0), default=0.0),
        cpu_s=sum(part.cpu_s for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        peak_bytes=sum(part.peak_bytes for part in parts) + read_peak_bytes(),
        num_queued=sum(part.num_queued for part in parts),
        num_dropped=sum(part.num_dropped for part in parts),
        cut_reason=cut_reason,
        stamp_delay_s=join_doubles(part.stamp_delay_s for part in parts),
    )


def join_doubles(columns: Iterable[array[float]]) -> Doubles:
    return np.concatenate([np.empty(0), *(np.frombuffer(column, np.float64) for column in columns if column)])


def join_ints(columns: Iterable[array[int]]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *(np.frombuffer(column, np.int64) for column in columns if column)])
