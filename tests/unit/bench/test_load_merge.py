"""The records of a level, joined from those of its workers."""

from __future__ import annotations

from array import array
from math import nan

import numpy as np

from tgis_cli.bench.load.columns import Columns, WorkerHealth
from tgis_cli.bench.load.merge import merge_columns, merge_health


def make_columns(*calls: tuple[int, float, list[float]]) -> Columns:
    """
    Args:
        calls: index, end and gaps of each.
    """
    columns = Columns(texts={14: f"of call {calls[0][0]}"})
    for index, end_s, gaps in calls:
        for column in (columns.index, columns.status, columns.input_tokens, columns.output_tokens):
            column.append(index)
        columns.asked_input.append(1)
        columns.asked_output.append(2)
        for times in (columns.due_s, columns.sent_s, columns.first_s):
            times.append(end_s - 1)
        columns.end_s.append(end_s)
        columns.gap_s.extend(gaps)
        columns.num_gaps.append(len(gaps))
    return columns


def test_calls_of_all_workers_are_in_the_order_of_their_ends():
    first = make_columns((0, 101.0, [0.5]), (2, 104.0, [0.25, 0.125]))
    second = make_columns((1, 102.0, []), (3, 103.0, [2.0]))

    records = merge_columns([first, second], start_s=100.0)

    assert records.index.tolist() == [0, 1, 3, 2]
    assert records.end_s.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert records.due_s.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert records.num_gaps.tolist() == [1, 0, 1, 2]
    assert records.gap_s.tolist() == [0.5, 2.0, 0.25, 0.125]
    assert records.gap_s.dtype == np.float32
    assert records.texts == {14: "of call 0"}


def test_a_level_without_calls_has_empty_records():
    records = merge_columns([Columns()], start_s=100.0)

    assert (len(records.index), len(records.end_s), len(records.gap_s)) == (0, 0, 0)


def test_the_busiest_worker_decides_the_share_of_the_cpu():
    parts = [
        WorkerHealth(loop_lag_s=array("d", [0.1]), cpu_s=1.0, wall_s=4.0, num_tokens=10, num_queued=1, peak_bytes=5),
        WorkerHealth(loop_lag_s=array("d", [0.2]), cpu_s=3.0, wall_s=4.0, num_tokens=20, num_queued=2, peak_bytes=6),
    ]

    health = merge_health(parts, [make_columns((0, 101.0, []))])

    assert (health.workers, health.cpu_share, health.cpu_s) == (2, 0.75, 4.0)
    assert (health.num_tokens, health.num_queued) == (30, 3)
    assert health.peak_bytes > 11 + 10e6  # with this process, which has numpy
    assert health.loop_lag_s.tolist() == [0.1, 0.2]
    assert health.send_lag_s.tolist() == [0.0]


def test_a_call_without_a_connection_says_nothing_about_the_delay_of_sending():
    columns = make_columns((0, 101.0, []), (1, 103.0, []))
    columns.sent_s[1] = nan

    records = merge_columns([columns], 100.0)
    health = merge_health([WorkerHealth()], [columns])

    assert records.sent_s.tolist() == [0.0, 3.0]
    assert health.send_lag_s.tolist() == [0.0]
