"""How memory is divided: numbers of blocks, lowered lengths, and errors that state the numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tgis_server.engines.native.door import cpu_environment
from tgis_server.engines.native.memory import (
    GIB,
    MAX_PRIMITIVES,
    PRIMITIVE_BYTES,
    KvBudget,
    MemoryRequest,
    check_fits,
    decide_kv_budget,
)
from tgis_server.errors import NotEnoughDevices
from tgis_server.words.sizes import format_bytes

MIB = 1 << 20
CPU = MemoryRequest(
    device="cpu", block_bytes=MIB, block_size=16, max_sequence_length=1600, is_explicit=True, max_batch_size=1000
)
CUDA = replace(CPU, device="cuda", margin_percent=20)


def test_the_pool_takes_a_quarter_of_free_cpu_memory() -> None:
    assert decide_kv_budget(CPU, 2 * GIB) == KvBudget(512, 1600)


def test_the_pool_takes_at_most_four_gib_on_a_cpu() -> None:
    assert decide_kv_budget(CPU, 100 * GIB) == KvBudget(4096, 1600)


def test_the_pool_takes_more_if_the_longest_sequence_needs_it() -> None:
    assert decide_kv_budget(replace(CPU, max_sequence_length=16 * 9000), 100 * GIB).num_blocks == 9000


def test_the_pool_has_no_more_blocks_than_all_sequences_can_fill() -> None:
    assert decide_kv_budget(replace(CPU, max_batch_size=2), 100 * GIB).num_blocks == 200


def test_the_pool_takes_free_gpu_memory_less_the_margin() -> None:
    assert decide_kv_budget(CUDA, 10 * GIB) == KvBudget(8192, 1600)


def test_the_option_decides_the_size_of_the_pool() -> None:
    assert decide_kv_budget(replace(CPU, kv_cache_memory=300 * MIB), 100 * GIB).num_blocks == 300


def test_an_option_beyond_free_memory_is_refused() -> None:
    with pytest.raises(NotEnoughDevices, match=r"--kv-cache-memory asks for 2\.0 GiB .* only 922 MiB"):
        decide_kv_budget(replace(CPU, kv_cache_memory=2 * GIB), GIB)


def test_an_explicit_length_that_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        NotEnoughDevices, match=r"1600 tokens needs 100 MiB .* only 90 MiB .*--max-sequence-length 1440"
    ):
        decide_kv_budget(CPU, 100 * MIB)


def test_an_inferred_length_is_lowered_with_a_note() -> None:
    budget = decide_kv_budget(replace(CPU, is_explicit=False), 100 * MIB)

    assert (budget.num_blocks, budget.max_sequence_length) == (90, 1440)
    assert "lowered from 1600 to 1440" in budget.notes[0]


def test_no_memory_is_an_error_even_if_the_length_is_inferred() -> None:
    with pytest.raises(NotEnoughDevices):
        decide_kv_budget(replace(CPU, is_explicit=False), 0)


def test_weights_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(NotEnoughDevices, match=r"m in float32 needs 3\.6 GiB .*\(3\.0 GiB weights.* 2\.0 GiB is free"):
        check_fits(CPU, 2 * GIB, 3 * GIB, 500 * MIB, "m in float32")


def test_weights_that_fit_are_accepted() -> None:
    check_fits(CPU, 4 * GIB, 3 * GIB, 500 * MIB, "m in float32")


@pytest.mark.parametrize(
    ("count", "text"), [(100 << 40, "100.0 TiB"), (3 * GIB // 2, "1.5 GiB"), (12 * MIB, "12 MiB"), (2048, "2 KiB")]
)
def test_sizes_are_printed_with_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


COMPILE_MANY = """
import re
import torch
from tgis_server.engines.native.ops.linear import linear, pack
from tgis_server.engines.native.ops.api import WeightPart

def anonymous_bytes():
    return int(re.search(r"Anonymous:\\s+(\\d+)", open("/proc/self/smaps_rollup").read())[1]) * 1024

with torch.inference_mode():
    weights = [pack(WeightPart.plain(torch.randn(size, 128)), prepack=True) for size in (256, 384)]
    x = torch.randn(300, 128)
    linear(x, weights[0], None, None)
    before = anonymous_bytes()
    for num_rows in range(1, 300):
        for weight in weights:
            linear(x[:num_rows], weight, None, None)
    print(anonymous_bytes() - before)
"""


def test_compiled_layers_take_no_more_memory_than_is_counted_for_them() -> None:
    """598 primitives are compiled; a shard's environment keeps the last ``MAX_PRIMITIVES``."""
    environ = {**os.environ, **cpu_environment({}), "OMP_NUM_THREADS": "1"}

    output = subprocess.run(
        [sys.executable, "-c", COMPILE_MANY], env=environ, capture_output=True, text=True, check=True, timeout=120
    )

    assert int(output.stdout) < MAX_PRIMITIVES * PRIMITIVE_BYTES
