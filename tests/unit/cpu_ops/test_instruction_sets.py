"""Which instruction sets may serve on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from fake_compiler import AVX512_FLAGS, write_cpuinfo
from tgis_server.engines.native.ops.cpu.instruction_sets import ALL, AVX512_BF16, choose_sets
from tgis_server.errors import UsageError
from tgis_server.options import options


@pytest.mark.parametrize(
    ("flags", "choice", "expected"),
    [
        (f"{AVX512_FLAGS} avx512_bf16", "auto", ["avx512_bf16", "avx512", "avx2"]),
        (AVX512_FLAGS, "auto", ["avx512", "avx2"]),
        (f"{AVX512_FLAGS} avx512_bf16", "avx512", ["avx512", "avx2"]),
        (AVX512_FLAGS, "avx2", ["avx2"]),
        (AVX512_FLAGS, "reference", []),
        ("avx2", "auto", []),
        ("asimd bf16", "auto", []),
    ],
)
def test_the_best_first_of_what_the_cpu_runs_from_the_chosen_one_down(
    tmp_path: Path, flags: str, choice: str, expected: list[str]
):
    assert [each.name for each in choose_sets(choice, write_cpuinfo(tmp_path, flags))] == expected


def test_an_impossible_choice_is_refused_with_the_possible_ones(tmp_path: Path):
    with pytest.raises(
        UsageError, match="is avx512_bf16, but this CPU runs only avx512 and avx2; use auto, reference, avx512"
    ):
        choose_sets("avx512_bf16", write_cpuinfo(tmp_path))
    with pytest.raises(UsageError, match="is avx2, but this CPU has neither AVX2 nor AVX-512; use auto, reference"):
        choose_sets("avx2", write_cpuinfo(tmp_path, "asimd"))


def test_the_option_offers_every_set():
    (option,) = (option for option in options() if option.name == "cpu_ops")

    assert sorted(option.opt.choices) == sorted(["auto", "reference", *(each.name for each in ALL)])


def test_a_compiler_gets_the_sets_name_and_its_flags():
    assert AVX512_BF16.compiler_flags[0] == "-DTGIS_ISA=avx512_bf16"
    assert AVX512_BF16.compiler_flags[-1] == "-mavx512bf16"
