"""The resources of this machine for a server: GPUs, CPUs, number formats, memory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tgis_cli.machine.cpus import Cpu, read_cpus
from tgis_cli.machine.gpus import Gpu, find_gpus, torch_has_cuda
from tgis_server.host import cgroup
from tgis_server.host.cpu_flags import CPUINFO, read_cpu_flags

__all__ = ["Cpu", "Gpu", "Machine", "probe_machine"]

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's name


@dataclass(frozen=True, slots=True)
class Machine:
    """The facts on which a launch and its checks base their decisions."""

    gpus: tuple[Gpu, ...]
    cpus: tuple[Cpu, ...]  # that this process's affinity allows
    has_bf16: bool  # the CPU multiplies bfloat16
    free_bytes: int  # memory that can be allocated now
    limit_bytes: int | None  # the container's limit
    cpu_quota: float | None = None  # CPUs that the control group may use at once
    torch_has_cuda: bool | None = None  # None = unknown
    cpu_kernels: str | None = None  # of compiled operations; empty: torch's serve; None: as on this machine
    packs_weights: bool | None = None  # whether the CPU has instructions for packed weights; None: as this one has
    driver: str = ""  # of the GPUs, with versions
    gpu_problem: str = ""  # a sentence: why some or all GPUs cannot be used

    @property
    def num_cpus(self) -> int:
        """Whole CPUs to use at once; a quota of 1.5 is rounded down, as two busy threads would be throttled."""
        return max(1, min(len(self.cpus), math.floor(self.cpu_quota or len(self.cpus))))

    @property
    def has_tight_quota(self) -> bool:
        """Whether fewer CPUs may be used at once than the affinity allows."""
        return self.cpu_quota is not None and self.cpu_quota < len(self.cpus)


def probe_machine(environ: Mapping[str, str]) -> Machine:
    """Examine this machine; takes milliseconds, or as long as the GPU driver needs to wake up."""
    report = find_gpus(environ)
    return Machine(
        gpus=report.gpus,
        cpus=read_cpus(os.sched_getaffinity(0)),
        has_bf16=cpu_has_bf16(),
        free_bytes=cgroup.available_bytes(),
        limit_bytes=cgroup.memory_limit_bytes(),
        cpu_quota=cgroup.cpu_quota(),
        torch_has_cuda=torch_has_cuda(),
        driver=report.driver,
        gpu_problem=report.problem,
    )


def cpu_has_bf16(cpuinfo: Path = CPUINFO) -> bool:
    return not BF16_FLAGS.isdisjoint(read_cpu_flags(cpuinfo) or ())
