"""Which part of a level was steady, on levels whose steady part is known."""

from __future__ import annotations

import numpy as np
import pytest

from tgis_cli.bench.load.calls import Arrivals
from tgis_cli.bench.load.detail import Window
from tgis_cli.bench.load.windows import NO_STEADY_STATE, find_steady_window
from timelines import Timeline, closed_loop, open_loop


def find_closed(timeline, concurrency):
    return find_steady_window(timeline.records(), Arrivals(concurrency=concurrency))


def find_open(timeline):
    records = timeline.records()
    return find_steady_window(records, Arrivals(due_s=tuple(sorted(records.due_s))))


def test_a_closed_loop_is_steady_from_its_last_first_answer_until_a_slot_stays_empty():
    # Two streams, the second 0.25 s later; calls of 1 s, ten on each.
    window, note = find_closed(closed_loop(stagger_s=0.25), 2)

    assert note is None
    assert (window.start_s, window.end_s) == pytest.approx((1.25, 10.0))


def test_calls_that_a_cut_has_ended_still_filled_their_slots():
    timeline = closed_loop(stagger_s=0.25)
    timeline.answer(10.0, 11.0, status=-1)

    window, _ = find_closed(timeline, 2)

    assert window.end_s == pytest.approx(10.25)


def test_with_one_long_first_answer_the_level_is_steady_from_its_first_token():
    timeline = closed_loop(streams=1, calls_per_stream=10)
    timeline.stream(0.0, 0.5, [0.95] * 9)

    window, note = find_closed(timeline, 2)

    assert note is None
    assert (window.start_s, window.end_s) == pytest.approx((0.5, 9.05))


@pytest.mark.parametrize(
    ("timeline", "concurrency"),
    [(closed_loop(), 5), (closed_loop(calls_per_stream=1, stagger_s=1.0), 2)],
    ids=["never full", "full for a moment"],
)
def test_a_level_that_was_never_steady_counts_as_a_whole(timeline, concurrency):
    window, note = find_closed(timeline, concurrency)

    assert window == Window(0.0, timeline.records().end_s.max())
    assert note == NO_STEADY_STATE


def test_a_level_without_calls_has_an_empty_window():
    assert find_closed(Timeline(), 2) == (Window(0.0, 0.0), None)


def test_an_open_loop_is_steady_from_when_early_calls_have_ended_until_the_last_is_due():
    window, note = find_open(open_loop(np.arange(0, 20, 0.5), np.full(40, 2.0)))

    assert note is None
    assert window == Window(2.0, 19.5)


def test_an_open_loop_that_falls_behind_is_measured_from_its_first_end():
    moments = np.arange(0, 20, 0.5)

    window, note = find_open(open_loop(moments, 1 + moments))

    assert note is None
    assert window == Window(1.0, 19.5)
