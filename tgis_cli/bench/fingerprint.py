"""What a result was measured on: versions, machine, model, server and run. It imports neither torch nor gRPC."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tgis_cli
from tgis_cli.bench.limits import Bandwidth, measure_bandwidth
from tgis_cli.machine import Machine, probe_machine
from tgis_cli.machine.container import is_in_container
from tgis_cli.machine.cpus import format_cpu_list
from tgis_cli.machine.versions import read_versions
from tgis_server.host.cgroup import read_text
from tgis_server.host.cpu_flags import read_cpu_flags, read_cpu_model

# The instruction sets that decide how fast a model runs, from the oldest; the last ones are ARM's.
CPU_FLAGS = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
GIT_S = 5.0


def make_fingerprint(
    environ: Mapping[str, str],
    *,
    model: Mapping[str, Any],
    server: Mapping[str, Any],
    run: Mapping[str, Any],
    machine: Machine | None = None,
    bandwidth: Bandwidth | None = None,
) -> dict[str, Any]:
    """Facts as they are at this moment.

    Args:
        model: facts about the model, such as its name, dtype and layout.
        server: the options of the server, as far as they are known.
        run: the options of the benchmark.
        machine: ``None``: it is examined now.
        bandwidth: that of the memory; ``None``: it is measured now, which takes about a second.
    """
    machine = machine or probe_machine(environ)
    before = read_cpu_times()
    bandwidth = bandwidth or measure_bandwidth(machine.num_cpus)
    return {
        "versions": read_versions(),
        "commit": find_commit(),
        "system": {
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "in_container": is_in_container(environ),
            "steal_share": share_of_steal(before, read_cpu_times()),
            "load_average": os.getloadavg()[0],
        },
        "cpu": describe_cpu(machine),
        "memory": {
            "free_bytes": machine.free_bytes,
            "limit_bytes": machine.limit_bytes,
            "transparent_huge_pages": find_choice(read_text(Path("/sys/kernel/mm/transparent_hugepage/enabled"))),
            "bandwidth": asdict(bandwidth),
        },
        "gpus": [{"name": gpu.name, "total_bytes": gpu.total_bytes} for gpu in machine.gpus],
        "gpu_driver": machine.driver,
        "model": dict(model),
        "server": dict(server),
        "run": dict(run),
    }


def describe_cpu(machine: Machine) -> dict[str, Any]:
    flags = read_cpu_flags() or frozenset()
    first = machine.cpus[0].number if machine.cpus else 0
    return {
        "model": read_cpu_model(),
        "flags": [name for name in CPU_FLAGS if name in flags],
        "cores": len({cpu.core for cpu in machine.cpus}),
        "cpus": len(machine.cpus),
        "cpus_of_machine": os.cpu_count(),
        "affinity": format_cpu_list(cpu.number for cpu in machine.cpus),
        "nodes": len({cpu.node for cpu in machine.cpus}),
        "quota": machine.cpu_quota,
        "governor": read_text(Path(f"/sys/devices/system/cpu/cpu{first}/cpufreq/scaling_governor")).strip(),
    }


def find_choice(text: str) -> str:
    """``madvise`` of ``always [madvise] never``; empty if the kernel says nothing."""
    return text.partition("[")[2].partition("]")[0]


def read_cpu_times(stat: Path = Path("/proc/stat")) -> list[int]:
    """Ticks of all CPUs by state, in the kernel's order; the eighth number counts ticks stolen by the hypervisor."""
    words = read_text(stat).partition("\n")[0].split()[1:9]
    return [int(word) for word in words]


def share_of_steal(before: list[int], after: list[int]) -> float | None:
    """The share of time between two readings that the hypervisor gave to other machines; ``None`` if unknown."""
    total = sum(after) - sum(before)
    return (after[7] - before[7]) / total if len(after) == len(before) == 8 and total > 0 else None


def find_commit(package: Path = Path(tgis_cli.__file__).parent) -> str | None:
    """The commit of the checkout that this program runs from, with ``+`` if it was changed; ``None`` elsewhere."""
    root = package.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = run_git(root, "rev-parse", "HEAD")
        return commit + ("+" if run_git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def run_git(root: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_S).stdout.strip()
