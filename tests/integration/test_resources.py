"""The resources chosen at a start reach its processes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from tgis_cli.machine.cpus import parse_cpu_list
from tgis_cli.machine.facts import probe_machine
from tgis_server.child import pin_to_cpus


def allowed_cpus(pid: int) -> set[int]:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return set(parse_cpu_list(lines["Cpus_allowed_list"]))


def test_each_shard_computes_on_its_own_cores(launch):
    machine = probe_machine({})
    if len(machine.cpus) < 2 or machine.has_tight_quota:
        pytest.skip("shards are not pinned on this machine")

    server = launch("--num-shard", "2", "--device", "cpu")

    own = [allowed_cpus(server.pids[name]) for name in ("shard-0", "shard-1")]
    assert own[0].isdisjoint(own[1])
    assert len(own[0]) == len(own[1]) > 0
    assert allowed_cpus(server.pids["frontend"]) == allowed_cpus(server.pids["launcher"])
    server.wait_for_line(r"shard_cpus .* separate cores for each shard$")


def test_a_shard_that_cannot_be_pinned_continues_with_a_warning(caplog: pytest.LogCaptureFixture):
    before = os.sched_getaffinity(0)

    with caplog.at_level(logging.WARNING):
        pin_to_cpus((100_000,))

    assert os.sched_getaffinity(0) == before
    assert caplog.messages == ["not pinned to CPUs (100000,): Invalid argument"]
