"""The CPUs of a machine, and how shards divide them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgis_cli.machine.cpus import Cpu, format_cpu_list, parse_cpu_list, read_cpus, split_cpus
from tgis_cli.machine.facts import Machine, cpu_has_bf16


def write_topology(root: Path, siblings: dict[int, str], nodes: dict[int, str]) -> Path:
    """Write the kernel's files that say which CPUs share a core, and which are on a node."""
    for number, text in siblings.items():
        directory = root / f"cpu/cpu{number}/topology"
        directory.mkdir(parents=True)
        (directory / "thread_siblings_list").write_text(f"{text}\n")
    for number, text in nodes.items():
        (root / f"node/node{number}").mkdir(parents=True)
        (root / f"node/node{number}/cpulist").write_text(f"{text}\n")
    return root


def cores(num_cores: int, *, num_threads: int = 1, num_nodes: int = 1) -> tuple[Cpu, ...]:
    """CPUs that are numbered as Linux does it: first the first hyperthread of each core, then the second ones."""
    cpus = [
        Cpu(core + thread * num_cores, core, core * num_nodes // num_cores)
        for core in range(num_cores)
        for thread in range(num_threads)
    ]
    return tuple(cpus)


@pytest.mark.parametrize(
    ("text", "expected"), [("0-2,8\n", [0, 1, 2, 8]), ("5", [5]), ("", []), ("0-1,4-5", [0, 1, 4, 5])]
)
def test_a_cpu_list_is_read_and_written_in_the_kernels_format(text: str, expected: list[int]):
    assert parse_cpu_list(text) == expected
    assert format_cpu_list(expected) == text.strip()


def test_cpus_of_a_core_and_of_a_node_are_neighbours(tmp_path: Path):
    root = write_topology(tmp_path, {n: f"{n % 4},{n % 4 + 4}" for n in range(8)}, {0: "0,2,4,6", 1: "1,3,5,7"})

    assert [(cpu.number, cpu.core, cpu.node) for cpu in read_cpus(range(8), root)] == [
        *((0, 0, 0), (4, 0, 0), (2, 2, 0), (6, 2, 0)),
        *((1, 1, 1), (5, 1, 1), (3, 3, 1), (7, 3, 1)),
    ]


def test_without_topology_each_cpu_is_a_core(tmp_path: Path):
    assert read_cpus({7, 3}, tmp_path) == (Cpu(3, 3), Cpu(7, 7))


@pytest.mark.parametrize(
    ("cpus", "num_shard", "expected"),
    [
        (cores(8), 2, ["0-3", "4-7"]),
        (cores(8, num_threads=2), 2, ["0-3,8-11", "4-7,12-15"]),
        (cores(10, num_nodes=2), 4, ["0-1", "2-3", "5-6", "7-8"]),
        (cores(8), 3, ["0-1", "2-3", "5-6"]),
        (cores(2, num_threads=2), 4, ["0", "2", "1", "3"]),
    ],
    ids=["plain", "hyperthreads", "two nodes", "a remainder", "fewer cores than shards"],
)
def test_each_shard_gets_its_own_neighbouring_cores(cpus: tuple[Cpu, ...], num_shard: int, expected: list[str]):
    assert [format_cpu_list(numbers) for numbers in split_cpus(cpus, num_shard)] == expected


@given(st.integers(1, 40), st.integers(1, 2), st.integers(1, 4), st.data())
def test_sets_are_disjoint_and_share_no_core(num_cores: int, num_threads: int, num_nodes: int, data: st.DataObject):
    cpus = cores(num_cores, num_threads=num_threads, num_nodes=num_nodes)
    num_shard = data.draw(st.integers(1, num_cores))

    sets = split_cpus(cpus, num_shard)

    core_of = {cpu.number: cpu.core for cpu in cpus}
    used = [{core_of[number] for number in numbers} for numbers in sets]
    assert len(set().union(*used)) == sum(map(len, used))
    assert {len(numbers) for numbers in sets} == {num_cores // num_shard * num_threads}


@pytest.mark.parametrize(("quota", "expected"), [(None, 4), (2.5, 2), (0.5, 1), (9.0, 4)])
def test_a_quota_limits_the_number_of_cpus(quota: float | None, expected: int):
    machine = Machine((), cores(4), has_bf16=True, free_bytes=0, limit_bytes=None, cpu_quota=quota)

    assert machine.num_cpus == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx512_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2", False),
        ("", False),
    ],
)
def test_bf16_instructions_are_read_from_cpuinfo(tmp_path: Path, line: str, expected: bool):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{line}\n")

    assert cpu_has_bf16(file) is expected
