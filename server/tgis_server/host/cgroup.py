"""Limits of this process's control group: memory, CPUs, and how often its out-of-memory killer struck.

The launcher reads them for its checks and hints; shards read them to divide the free memory.

Supports version 2 (one tree) and version 1 (a tree per controller). Limits of the groups above apply too, so every
reading walks up to the root. A file that cannot be read means "no limit".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

# Version 1 spells "no limit" as the largest page-aligned number.
UNLIMITED_BYTES = 1 << 60


def group_dirs(controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """The group of this process and all groups above it, for a controller such as ``memory``, innermost first."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        if not base.is_dir():
            continue
        # In a container, the path may name a group outside the mount; in that case, the mount's root is this process's
        # group.
        own = base / path.lstrip("/")
        while own != base:
            if own.is_dir():
                yield own
            own = own.parent
        yield base


def memory_limit_bytes(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """The tightest memory limit, ``None`` without one."""
    limits = [
        limit
        for group in group_dirs("memory", root, membership)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := read_int(group / name)) is not None and limit < UNLIMITED_BYTES
    ]
    return min(limits, default=None)


def memory_free_bytes(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """Memory that can be allocated before a limit is hit, counting page cache as free. ``None`` without a limit."""
    free = []
    for group in group_dirs("memory", root, membership):
        limit = read_int(group / "memory.max") or read_int(group / "memory.limit_in_bytes")
        used = read_int(group / "memory.current") or read_int(group / "memory.usage_in_bytes")
        if limit is None or used is None or limit >= UNLIMITED_BYTES:
            continue
        stat = read_counters(group / "memory.stat")
        # Version 1 keeps totals, which include the groups below, in total_*; in version 2, all numbers are totals.
        cache = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("active_file", "inactive_file"))
        free.append(max(0, limit - used + cache))
    return min(free, default=None)


def available_bytes(root: Path = ROOT, membership: Path = MEMBERSHIP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that can be allocated now: the machine's, or less if a control group allows less."""
    # If the file cannot be read: free memory as sysinfo counts it, without page cache.
    on_machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in read_text(meminfo).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            on_machine = int(value.split()[0]) * 1024
    in_group = memory_free_bytes(root, membership)
    return on_machine if in_group is None else min(on_machine, in_group)


def cpu_quota(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """CPUs that may be used at once, ``None`` without a quota."""
    quotas = []
    for group in group_dirs("cpu", root, membership):
        quota, period = read_int(group / "cpu.cfs_quota_us"), read_int(group / "cpu.cfs_period_us")
        words = read_text(group / "cpu.max").split()
        if len(words) == 2 and words[0] != "max":
            quota, period = int(words[0]), int(words[1])
        if quota and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def count_oom_kills(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """How many processes of this group the kernel has killed for lack of memory; ``None`` if it does not count them."""
    for group in group_dirs("memory", root, membership):
        for name in ("memory.events", "memory.oom_control"):
            counters = read_counters(group / name)
            if "oom_kill" in counters:
                return counters["oom_kill"]
    return None


def read_text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def read_int(file: Path) -> int | None:
    text = read_text(file).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def read_counters(file: Path) -> dict[str, int]:
    """Read a file of ``name value`` lines."""
    pairs = (line.split() for line in read_text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
