"""What this machine offers to a server: GPUs, CPUs, number formats, memory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.machine.gpus import Gpu, find_gpus, torch_has_cuda
from tgis_server import cgroup

__all__ = ["Gpu", "Machine", "probe_machine"]

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's name


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts that launch and its checks decide on."""

    gpus: tuple[Gpu, ...]
    num_cpus: int  # that may be used at a time: affinity and the control group's quota count
    has_bf16: bool  # the CPU multiplies bfloat16
    free_bytes: int  # memory that can be allocated now
    limit_bytes: int | None  # the container's limit
    torch_has_cuda: bool | None = None  # None = not known


def probe_machine(environ: Mapping[str, str]) -> Machine:
    """Look at this machine; takes milliseconds."""
    return Machine(
        gpus=find_gpus(environ),
        num_cpus=count_cpus(),
        has_bf16=cpu_has_bf16(),
        free_bytes=cgroup.available_bytes(),
        limit_bytes=cgroup.memory_limit_bytes(),
        torch_has_cuda=torch_has_cuda(),
    )


def count_cpus() -> int:
    """Whole CPUs: with a quota of 1.5 two busy threads would be held up, so that one is right."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, math.floor(cgroup.cpu_quota() or allowed)))


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    for line in cgroup.read_text(cpuinfo).splitlines():
        name, _, flags = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return not BF16_FLAGS.isdisjoint(flags.split())
    return False
