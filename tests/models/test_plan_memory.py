"""A plan predicts the memory that loading takes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memory_worker import measure_ranks
from tgis_cli.machine import Machine, probe_machine
from tgis_cli.model_files.download.remote_headers import write_converted_header
from tgis_cli.plan.fit import fit_shards
from tgis_server.engines.native.door import describe_cpu_ops, inspect
from tgis_server.engines.native.memory import PACKING_FLAGS, cpu_packs
from tgis_server.engines.native.ops.linear import can_prepack
from tiny import BASE, make_run

CONFIG = {
    **BASE,
    "model_type": "llama",
    "vocab_size": 16000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
MIXTURE = CONFIG | {"model_type": "mixtral", "num_local_experts": 8, "intermediate_size": 512}
KV_BYTES = 64 << 20


@pytest.fixture(scope="module")
def machine() -> Machine:
    return probe_machine({"CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.parametrize(
    ("config", "dtype", "is_tied", "num_shard"),
    [
        (CONFIG, "float32", True, 2),
        (CONFIG, "bfloat16", False, 2),
        (CONFIG, "bfloat16", True, 1),
        (MIXTURE, "bfloat16", False, 1),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_weights_and_kv_cache_are_predicted_within_5_percent(
    config: dict[str, Any], dtype: str, is_tied: bool, num_shard: int, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": is_tied}))
    write_converted_header(tmp_path)  # zeros fill memory like any other weights
    run = make_run(tmp_path, tmp_path, dtype=dtype, num_shard=num_shard, kv_cache_memory=KV_BYTES)
    run = replace(run, cpu_ops=describe_cpu_ops("auto", dtype, os.environ).kernels or "reference")

    fit = fit_shards(run, machine, inspect(tmp_path, num_shard).sizes)
    measured = measure_ranks(run)

    for weight_bytes, kv_bytes, num_blocks in measured:
        print(f"weights {fit.weight_bytes / weight_bytes:.3f}, keys and values {fit.kv_bytes / kv_bytes:.3f}")
        assert num_blocks == fit.num_blocks
        assert fit.weight_bytes == pytest.approx(weight_bytes, rel=0.05)
        assert fit.kv_bytes == pytest.approx(kv_bytes, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", *PACKING_FLAGS])
def test_packing_is_predicted_without_torch(dtype: str) -> None:
    assert cpu_packs(dtype) == can_prepack(getattr(torch, dtype))
