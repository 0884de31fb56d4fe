"""What this machine offers to a server: GPUs, CPUs, number formats, memory."""

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
    """Facts that launch and its checks decide on."""

    gpus: tuple[Gpu, ...]
    cpus: tuple[Cpu, ...]  # that this process's affinity allows
    has_bf16: bool  # the CPU multiplies bfloat16
    free_bytes: int  # memory that can be allocated now
    limit_bytes: int | None  # the container's limit
    cpu_quota: float | None = None  # CPUs that the control group allows at a time
    torch_has_cuda: bool | None = None  # None = not known
    driver: str = ""  # of the GPUs, with versions
    gpu_problem: str = ""  # a sentence: why some or all GPUs cannot be used

    @property
    def num_cpus(self) -> int:
        """Whole CPUs to use at a time: with a quota of 1.5 two busy threads would be held up, so that one is right."""
        return max(1, min(len(self.cpus), math.floor(self.cpu_quota or len(self.cpus))))

    @property
    def has_tight_quota(self) -> bool:
        """Fewer CPUs may be used at a time than the affinity shows."""
        return self.cpu_quota is not None and self.cpu_quota < len(self.cpus)


def probe_machine(environ: Mapping[str, str]) -> Machine:
    """Look at this machine; takes milliseconds, or as long as the driver of the GPUs needs to wake up."""
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
