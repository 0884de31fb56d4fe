"""What the control group of this process allows: memory, CPUs, and how often its out-of-memory killer struck.

Read by the launcher, for its checks and hints, and by shards, which divide what memory is free.

Reads version 2 (one tree) and version 1 (a tree per controller). A limit anywhere above the own group counts too, so
that every reading walks up to the root. Unreadable files of a group mean "no limit".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

# version 1 spells "no limit" as the largest page-aligned number; whatever is this large is none
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
        # In a container the path may name a group outside of what is mounted: the mount's root is the own group then.
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
    """What may still be allocated before a limit is hit: page cache counts as free. ``None`` without a limit."""
    free = []
    for group in group_dirs("memory", root, membership):
        limit = read_int(group / "memory.max") or read_int(group / "memory.limit_in_bytes")
        used = read_int(group / "memory.current") or read_int(group / "memory.usage_in_bytes")
        if limit is None or used is None or limit >= UNLIMITED_BYTES:
            continue
        stat = read_counters(group / "memory.stat")
        # Version 1 counts groups below apart from the own ones, in total_*; of version 2 all numbers are totals.
        cache = sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in ("active_file", "inactive_file"))
        free.append(max(0, limit - used + cache))
    return min(free, default=None)


def available_bytes(root: Path = ROOT, membership: Path = MEMBERSHIP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Memory that can be allocated now: what the machine has, or less if a control group allows less."""
    # What sysinfo calls free, without page cache, where the file is not readable.
    on_machine = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in read_text(meminfo).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            on_machine = int(value.split()[0]) * 1024
    in_group = memory_free_bytes(root, membership)
    return on_machine if in_group is None else min(on_machine, in_group)


def cpu_quota(root: Path = ROOT, membership: Path = MEMBERSHIP) -> float | None:
    """CPUs that may be used at a time, ``None`` without a quota."""
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
    """How many processes the kernel has killed in this group for lack of memory; ``None`` where it does not tell."""
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
    """Files of ``name value`` lines."""
    pairs = (line.split() for line in read_text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
