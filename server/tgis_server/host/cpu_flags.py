"""The model of this machine's CPU, and its instruction sets."""

from __future__ import annotations

from pathlib import Path

from tgis_server.host import cgroup

CPUINFO = Path("/proc/cpuinfo")


def read_cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str] | None:
    """The flags of the first CPU, such as ``avx512_bf16``; ``None`` if the kernel lists none."""
    for line in cgroup.read_text(cpuinfo).splitlines():
        name, _, flags = line.partition(":")
        if name.strip().lower() in ("flags", "features"):  # the latter on ARM
            return frozenset(flags.split())
    return None


def read_cpu_model(cpuinfo: Path = CPUINFO) -> str:
    """The name of the first CPU, such as ``AMD EPYC 9654 96-Core Processor``; empty if the kernel gives none."""
    for line in cgroup.read_text(cpuinfo).splitlines():
        name, _, model = line.partition(":")
        if name.strip().lower() in ("model name", "cpu model"):
            return " ".join(model.split())
    return ""
