"""A plan predicts the GPU memory that a startup takes. Each load runs in a process with its own CUDA context."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tgis_cli.machine import probe_machine
from tgis_cli.model_files.download.remote_headers import write_converted_header
from tgis_cli.plan.fit import CUDA_CONTEXT_BYTES, Fit, fit_shards
from tgis_server.engines.native.door import inspect
from tgis_server.options import ServeConfig
from tgis_server.run import Run

MIB = 1 << 20
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Measured:
    """GPU memory of a rank after loading."""

    fit: Fit  # predicted before CUDA was touched
    context_bytes: int
    allocated_bytes: int  # by torch
    taken_bytes: int  # from the GPU
    num_blocks: int


def load_and_measure(connection: Connection, run: Run) -> None:
    machine = probe_machine(os.environ)  # as the launcher does: no context exists yet
    fit = fit_shards(run, machine, inspect(run.model_dir, 1).sizes)

    import torch

    from tgis_server.engines.native.runner import NativeRunner

    torch.cuda.init()
    square = torch.ones(64, 64, device="cuda")
    torch.mm(square, square)  # loads cuBLAS
    del square
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    allocated = torch.cuda.memory_allocated()
    runner = NativeRunner.load(run, 0, lambda *_: None)
    torch.cuda.synchronize()
    connection.send(
        Measured(
            fit=fit,
            context_bytes=machine.gpus[0].free_bytes - free,
            allocated_bytes=torch.cuda.memory_allocated() - allocated,
            taken_bytes=free - torch.cuda.mem_get_info()[0],
            num_blocks=runner.capacity.num_blocks,
        )
    )


def measure(directory: Path, *, is_tied: bool, dtype: str, **config: Any) -> Measured:
    (directory / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": is_tied}))
    write_converted_header(directory)  # all weights are zeros, which take as much memory as other values
    run = Run(
        config=replace(ServeConfig(), **config),
        run_dir=directory,
        model_id="model",
        model_dir=directory,
        engine="native",
        device="cuda",
        dtype=dtype,
        num_shard=1,
        max_sequence_length=8192,
        is_max_sequence_length_explicit=False,
        max_batch_tokens=8192,
        tokenization_workers=1,
    )
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=load_and_measure, args=(theirs, run), daemon=True)
    process.start()
    theirs.close()
    found: Measured = ours.recv()
    process.join(60)
    return found


@pytest.mark.parametrize(("dtype", "is_tied"), [("bfloat16", False), ("bfloat16", True), ("float32", False)])
def test_weights_and_kv_cache_are_predicted_within_5_percent(dtype: str, is_tied: bool, tmp_path: Path) -> None:
    found = measure(tmp_path, is_tied=is_tied, dtype=dtype, kv_cache_memory=1 << 30)

    predicted = found.fit.weight_bytes + found.fit.kv_bytes
    print(f"predicted {predicted / MIB:.0f} MiB, allocated {found.allocated_bytes / MIB:.0f}", end=" ")
    print(f"taken {found.taken_bytes / MIB:.0f}, context {found.context_bytes / MIB:.0f}")
    assert predicted == pytest.approx(found.allocated_bytes, rel=0.05)
    assert predicted == pytest.approx(found.taken_bytes, rel=0.05)


def test_kv_blocks_are_predicted_within_5_percent(tmp_path: Path) -> None:
    found = measure(tmp_path, is_tied=False, dtype="bfloat16")

    print(f"predicted {found.fit.num_blocks} blocks, measured {found.num_blocks}")
    assert found.fit.num_blocks == pytest.approx(found.num_blocks, rel=0.05)


def test_the_assumed_size_of_a_context_is_right(tmp_path: Path) -> None:
    found = measure(tmp_path, is_tied=True, dtype="bfloat16", kv_cache_memory=1 << 30)

    print(f"a context takes {found.context_bytes / MIB:.0f} MiB, but {CUDA_CONTEXT_BYTES / MIB:.0f} are assumed")
    assert found.context_bytes == pytest.approx(CUDA_CONTEXT_BYTES, abs=256 * MIB)
