"""What a machine can do at most."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict

import pytest

from tgis_cli.bench.limits import Bandwidth, Limits, best_of, best_rate, measure_bandwidth, read_limits, read_rounds


def test_the_best_round_counts_but_not_the_first_which_warms_up():
    is_closed = []

    def rounds():
        try:
            yield from (100.0, 2.0, 3.0, 1.0)
        finally:
            is_closed.append(True)

    assert best_rate(rounds, seconds=0.0) == 2.0
    assert is_closed


def test_bandwidth_is_measured_with_one_thread_and_with_several_which_end():
    before = threading.active_count()

    bandwidth = measure_bandwidth(2, seconds=0.0)

    assert bandwidth.num_threads == 2
    assert min(bandwidth.one_thread, bandwidth.all_threads) > 0
    assert threading.active_count() == before


def test_threads_end_when_a_round_is_interrupted(monkeypatch):
    class Interrupted(threading.Barrier):
        """The main thread is interrupted while it waits for the reads."""

        num_waits = 0

        def wait(self, timeout: float | None = None) -> int:
            if threading.current_thread() is threading.main_thread():
                self.num_waits += 1
                if self.num_waits == 2:
                    raise KeyboardInterrupt
            return super().wait(timeout)

    before = threading.active_count()
    monkeypatch.setattr(threading, "Barrier", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(read_rounds(2)())

    assert threading.active_count() == before


def test_limits_are_read_from_the_last_line_of_the_process_that_measured_them():
    limits = Limits(Bandwidth(1.0, 2.0, 2), {"float32": 3.0})

    assert read_limits(f"a library's line\n{json.dumps(asdict(limits))}\n") == limits


def test_of_two_measurements_the_higher_counts_for_each_limit():
    one = Limits(Bandwidth(1.0, 5.0, 2), {"float32": 3.0})
    other = Limits(Bandwidth(2.0, 4.0, 2), {"float32": 4.0})

    assert best_of(one, other) == Limits(Bandwidth(2.0, 5.0, 2), {"float32": 4.0})
