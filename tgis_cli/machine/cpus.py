"""The CPUs that this process may use, their cores and nodes, and how shards divide them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tgis_server.host import cgroup

SYSTEM = Path("/sys/devices/system")


@dataclass(frozen=True, slots=True)
class Cpu:
    """One logical CPU."""

    number: int
    core: int  # the lowest number among the hyperthreads of its core
    node: int = 0  # NUMA node


def read_cpus(allowed: Iterable[int], root: Path = SYSTEM) -> tuple[Cpu, ...]:
    """The allowed CPUs, ordered by node and core. A CPU counts as a core if its topology is unknown."""
    node_of = {
        number: int(file.parent.name.removeprefix("node"))
        for file in root.glob("node/node[0-9]*/cpulist")
        for number in parse_cpu_list(cgroup.read_text(file))
    }
    cpus = []
    for number in allowed:
        siblings = parse_cpu_list(cgroup.read_text(root / f"cpu/cpu{number}/topology/thread_siblings_list"))
        cpus.append(Cpu(number, min(siblings, default=number), node_of.get(number, 0)))
    return tuple(sorted(cpus, key=lambda cpu: (cpu.node, cpu.core, cpu.number)))


def parse_cpu_list(text: str) -> list[int]:
    """``0-2,8`` is 0, 1, 2 and 8."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def format_cpu_list(numbers: Iterable[int]) -> str:
    """The inverse of :func:`parse_cpu_list`."""
    # Consecutive numbers have the same difference from their index.
    runs = itertools.groupby(enumerate(sorted(numbers)), key=lambda item: item[1] - item[0])
    ends = [(run[0][1], run[-1][1]) for _, group in runs if (run := list(group))]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def split_cpus(cpus: Sequence[Cpu], num_shard: int) -> tuple[tuple[int, ...], ...]:
    """A set of neighbouring CPUs for each shard; no two sets share a core.

    All sets have the same number of cores, as the slowest shard sets the pace; the rest is left to other processes.
    If there are more shards than cores, hyperthreads are divided instead.

    Args:
        cpus: from :func:`read_cpus`, at least one per shard.
    """
    units = [tuple(cpu.number for cpu in core) for _, core in itertools.groupby(cpus, key=lambda cpu: cpu.core)]
    if len(units) < num_shard:
        units = [(cpu.number,) for cpu in cpus]
    size = len(units) // num_shard
    starts = (rank * len(units) // num_shard for rank in range(num_shard))  # spread evenly, to align sets with nodes
    return tuple(tuple(sorted(itertools.chain(*units[start : start + size]))) for start in starts)
