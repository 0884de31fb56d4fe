"""SIGKILL of each process, idle and under load: nothing survives, and the cause is named."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

Start = Callable[..., Any]  # of a Server in conftest.py

WITHIN_S = 2.0
CHILDREN = ["frontend", "shard-0", "shard-1"]
SLOW = ("--rehearse", "--num-shard", "2", "--rehearse-step-ms", "20")


@pytest.mark.parametrize("victim", CHILDREN)
def test_a_killed_child_ends_the_idle_group_and_is_named(launch: Start, victim: str):
    server = launch("--rehearse", "--num-shard", "2")

    os.kill(server.pids[victim], signal.SIGKILL)

    server.wait_until_gone(WITHIN_S)
    assert server.wait() == 5
    assert server.last_line.startswith(f"{victim} was killed by SIGKILL")


@pytest.mark.parametrize("victim", CHILDREN)
def test_a_killed_child_ends_the_busy_group_and_every_call_gets_a_status(launch: Start, victim: str):
    server = launch(*SLOW)
    load = server.start_load(num_streams=4, max_new_tokens=500)

    os.kill(server.pids[victim], signal.SIGKILL)

    server.wait_until_gone(WITHIN_S)
    assert server.wait() == 5
    assert server.last_line.startswith(f"{victim} was killed by SIGKILL")
    assert load.join() == ["UNAVAILABLE"] * 4


def test_no_child_outlives_an_idle_launcher(launch: Start):
    server = launch("--rehearse", "--num-shard", "4")

    server.process.kill()
    server.wait()

    server.wait_until_gone(WITHIN_S)


def test_no_child_outlives_a_busy_launcher(launch: Start):
    server = launch(*SLOW)
    load = server.start_load(num_streams=4, max_new_tokens=500)

    server.process.kill()
    server.wait()

    server.wait_until_gone(WITHIN_S)
    assert load.join() == ["UNAVAILABLE"] * 4


def test_no_child_outlives_a_launcher_killed_while_starting(start: Start):
    server = start("--rehearse", "--num-shard", "2", "--fault", "shard1:hang@load")
    pids = server.wait_for_children(3)

    server.process.kill()
    server.wait()

    server.wait_until_gone(WITHIN_S, pids)
