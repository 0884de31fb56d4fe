"""Cold and warm starts: the page cache, and the figures that are made of starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tgis_cli.bench.start.measure import Peak, Start, explain_cold_starts, list_starts, make_figures, make_start
from tgis_cli.bench.start.page_cache import drop, list_files, share_in_memory
from tgis_cli.bench.statistics.rates import estimate_mean

READY = {
    "elapsed_s": 2.5,
    "startup": [
        {"process": "launcher", "phase": "starting", "seconds": 0.1, "num_bytes": 0},
        {"process": "shard-0", "phase": "reading weights", "seconds": 1.5, "num_bytes": 100},
    ],
}


def make(ready_s: float = 2.5, *, is_cold: bool = True, held_share: float | None = 0.0) -> Start:
    return Start(is_cold, ready_s, {"shard-0: reading weights": 1.5}, 100, 1000, held_share)


def test_dropped_files_are_not_in_memory_until_they_are_read(tmp_path: Path):
    file = tmp_path / "weights"
    with file.open("wb") as stream:
        stream.write(os.urandom(1 << 20))
        os.fsync(stream.fileno())
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(file)
    files = list_files(tmp_path)
    assert files == [tmp_path / "empty", file]
    assert share_in_memory(files) == 1.0

    drop(files)
    if share_in_memory(files) == 1.0:
        pytest.skip("this file system is in memory itself")

    assert share_in_memory(files) == 0.0
    file.read_bytes()
    assert share_in_memory(files) == 1.0


def test_cold_and_warm_starts_alternate():
    assert list(list_starts(2)) == [(1, True), (1, False), (2, True), (2, False)]


def test_a_start_is_what_the_server_says_of_it():
    assert make_start(READY, 100, 1000, 0.0, is_cold=True) == Start(
        is_cold=True,
        ready_s=2.5,
        phases={"launcher: starting": 0.1, "shard-0: reading weights": 1.5},
        read_bytes=100,
        peak_bytes=1000,
        held_share=0.0,
    )


def test_figures_have_both_kinds_of_starts_and_then_the_phases():
    figures = list(make_figures([make(3.0), make(2.0, is_cold=False), make(5.0)]))

    assert [(each.group, each.name) for each in figures] == [
        ("cold start", "ready"),
        ("cold start", "read_bytes"),
        ("cold start", "peak_pss_bytes"),
        ("warm start", "ready"),
        ("warm start", "read_bytes"),
        ("warm start", "peak_pss_bytes"),
        ("shard-0: reading weights", "cold"),
        ("shard-0: reading weights", "warm"),
    ]
    assert figures[0].estimate == estimate_mean([3.0, 5.0])


def test_starts_that_were_cut_have_no_warm_figures():
    assert {each.group for each in make_figures([make()])} == {"cold start", "shard-0: reading weights"}


@pytest.mark.parametrize(
    ("held", "expected"),
    [([0.0, 0.001], ""), ([0.0, 0.5], "Up to 50% of the model's files"), ([0.0, None], "It is unknown")],
)
def test_it_is_said_if_cold_starts_were_not_cold(held: list[float | None], expected: str):
    notes = list(explain_cold_starts([make(held_share=share) for share in held]))

    assert "".join(notes).startswith(expected)
    assert bool(notes) == bool(expected)


def test_the_peak_is_looked_for_now_and_then_and_when_asked():
    now, sizes = [0.0], iter([5, 9, 7])
    peak = Peak(measure=lambda pid: next(sizes), clock=lambda: now[0])

    peak.look(1)
    peak.look(1)
    assert peak.num_bytes == 5
    now[0] = 1.0
    peak.look(1)
    assert peak.num_bytes == 9
    peak.look(1, now=True)
    assert peak.num_bytes == 9
