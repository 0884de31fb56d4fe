"""Limits of control groups, read from trees of files like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgis_server.host import cgroup

GIB = 1 << 30


@pytest.fixture
def group(tmp_path: Path):
    """A version 2 tree with this process in /pod/container. Call it with files and their contents."""
    membership = tmp_path / "membership"
    membership.write_text("0::/pod/container\n")
    root = tmp_path / "root"
    (root / "pod/container").mkdir(parents=True)

    def write(**files: str) -> dict[str, Path]:
        for name, text in files.items():
            folder, _, file = name.partition("__")
            (root / ("pod/container" if folder == "own" else "pod") / file.replace("_", ".", 1)).write_text(text)
        return {"root": root, "membership": membership}

    return write


def test_the_tightest_limit_of_all_groups_above_applies(group):
    places = group(own__memory_max="max\n", pod__memory_max=f"{2 * GIB}\n")

    assert cgroup.memory_limit_bytes(**places) == 2 * GIB


def test_page_cache_counts_as_free(group):
    places = group(
        own__memory_max=f"{6 * GIB}\n",
        own__memory_current=f"{5 * GIB}\n",
        own__memory_stat=f"inactive_file {GIB}\nactive_file {2 * GIB}\n",
    )

    assert cgroup.memory_free_bytes(**places) == 4 * GIB


def test_version_1_includes_the_page_cache_of_the_groups_below(tmp_path: Path):
    membership = tmp_path / "membership"
    membership.write_text("4:memory:/pod\n")
    (tmp_path / "memory/pod").mkdir(parents=True)
    (tmp_path / "memory/pod/memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    (tmp_path / "memory/pod/memory.usage_in_bytes").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory/pod/memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {GIB}\n")

    assert cgroup.memory_free_bytes(tmp_path, membership) == 2 * GIB


def test_a_cpu_quota_is_read(group):
    assert cgroup.cpu_quota(**group(own__cpu_max="150000 100000\n")) == 1.5
    assert cgroup.cpu_quota(**group(own__cpu_max="max 100000\n")) is None


def test_out_of_memory_kills_are_counted(group):
    assert cgroup.count_oom_kills(**group(own__memory_events="oom 3\noom_kill 2\n")) == 2


def test_version_1_has_a_tree_per_controller(tmp_path: Path):
    membership = tmp_path / "membership"
    membership.write_text("4:memory:/pod\n1:cpu,cpuacct:/pod\n0::/\n")
    (tmp_path / "memory/pod").mkdir(parents=True)
    (tmp_path / "memory/pod/memory.limit_in_bytes").write_text(f"{GIB}\n")
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")

    assert cgroup.memory_limit_bytes(tmp_path, membership) == GIB


def test_without_limits_the_memory_of_the_machine_is_available(group, tmp_path: Path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 99999999 kB\nMemAvailable:   2048 kB\n")

    assert cgroup.available_bytes(**group(), meminfo=meminfo) == 2048 * 1024


def test_available_memory_is_known_without_meminfo(group, tmp_path: Path):
    places = group(pod__memory_max=f"{1 << 60}\n")

    assert cgroup.available_bytes(**places, meminfo=tmp_path / "missing") > 0


def test_a_tighter_limit_of_the_group_overrides_the_memory_of_the_machine(group, tmp_path: Path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable: 99999999 kB\n")
    places = group(pod__memory_max=f"{GIB}\n", pod__memory_current=f"{2 * GIB}\n")

    assert cgroup.available_bytes(**places, meminfo=meminfo) == 0
