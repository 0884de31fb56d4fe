"""Stop signals: nothing that was started is lost, a second signal does not wait, and the exit code is 0."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

Start = Callable[..., Any]  # of a Server in conftest.py

SLOW = ("--rehearse", "--num-shard", "2", "--rehearse-step-ms", "20")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_loses_no_started_answer(launch: Start, number: signal.Signals):
    server = launch(*SLOW)
    load = server.start_load(num_streams=6, max_new_tokens=25)

    server.process.send_signal(number)

    assert load.join() == ["MAX_TOKENS"] * 6
    assert server.wait() == 0
    assert f"{number.name}: draining" in server.stderr
    server.wait_until_gone(within_s=0)
    assert server.run_dir is None


def test_a_second_signal_skips_the_drain(launch: Start):
    server = launch(*SLOW)
    load = server.start_load(num_streams=2, max_new_tokens=900)

    server.process.send_signal(signal.SIGINT)
    server.wait_for_line(r"^launcher \| .*2 calls in flight")
    server.process.send_signal(signal.SIGINT)

    assert server.wait() == 0
    assert load.join() == ["UNAVAILABLE"] * 2
    assert "SIGINT: stopping at once" in server.stderr


def test_a_drain_ends_when_its_time_is_up(launch: Start):
    server = launch(*SLOW, "--drain-timeout", "0.3")
    load = server.start_load(num_streams=2, max_new_tokens=900)

    server.process.send_signal(signal.SIGTERM)

    assert server.wait() == 0
    assert load.join() == ["UNAVAILABLE"] * 2


def test_a_signal_before_ready_ends_everything_with_exit_code_0(start: Start):
    server = start("--rehearse", "--num-shard", "2", "--fault", "shard1:hang@load")
    pids = server.wait_for_children(3)

    server.process.send_signal(signal.SIGTERM)

    assert server.wait() == 0
    server.wait_until_gone(0, pids)
    assert server.run_dir is None


def test_a_shard_that_dies_during_the_drain_is_a_failure(launch: Start):
    server = launch(*SLOW)
    load = server.start_load(num_streams=2, max_new_tokens=900)

    server.process.send_signal(signal.SIGTERM)
    server.wait_for_line("SIGTERM: draining")
    os.kill(server.pids["shard-1"], signal.SIGKILL)

    assert server.wait() == 5
    assert server.last_line.startswith("shard-1 was killed by SIGKILL")
    assert load.join() == ["UNAVAILABLE"] * 2


def test_a_front_end_that_is_killed_during_the_drain_is_a_failure(launch: Start):
    server = launch(*SLOW)
    load = server.start_load(num_streams=2, max_new_tokens=900)
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_line(r"^launcher \| .*2 calls in flight")

    os.kill(server.pids["frontend"], signal.SIGKILL)

    assert server.wait() == 5
    assert load.join() == ["UNAVAILABLE"] * 2
    assert "frontend was killed by SIGKILL" in server.last_line


def test_a_service_manager_may_signal_every_process(launch: Start):
    server = launch(*SLOW)
    load = server.start_load(num_streams=4, max_new_tokens=40)

    for pid in server.pids.values():
        with contextlib.suppress(ProcessLookupError):  # the end of the first may have ended others already
            os.kill(pid, signal.SIGTERM)

    assert load.join() == ["MAX_TOKENS"] * 4
    assert server.wait() == 0
    server.wait_until_gone(within_s=0)
