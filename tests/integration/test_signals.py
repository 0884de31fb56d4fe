"""Stop signals: nothing that was started is lost, a second signal does not wait, and the exit code is 0."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

Start = Callable[..., Any]  # of a Server in conftest.py

SLOW = ("--rehearse", "--num-shard", "2", "--rehearse-step-ms", "20")


def test_a_closed_terminal_stops_the_server_and_loses_no_started_answer(launch: Start):
    server = launch(*SLOW)
    load = server.start_load(num_streams=6, max_new_tokens=25)

    server.process.send_signal(signal.SIGHUP)

    assert load.join() == ["MAX_TOKENS"] * 6
    assert server.wait() == 0
    assert "SIGHUP: draining" in server.stderr


def test_a_drain_ends_when_its_time_is_up(launch: Start):
    server = launch(*SLOW, "--drain-timeout", "0.3")
    load = server.start_load(num_streams=2, max_new_tokens=900)

    server.process.send_signal(signal.SIGTERM)

    assert server.wait() == 0
    assert load.join() == ["UNAVAILABLE"] * 2


def test_a_service_manager_may_signal_every_process(launch: Start):
    server = launch(*SLOW)
    load = server.start_load(num_streams=4, max_new_tokens=40)

    for pid in server.pids.values():
        with contextlib.suppress(ProcessLookupError):  # the end of the first may have ended others already
            os.kill(pid, signal.SIGTERM)

    assert load.join() == ["MAX_TOKENS"] * 4
    assert server.wait() == 0
    server.wait_until_gone(within_s=0)
