"""Every rank reads its share of a weight from any layout, compared with slices in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tgis_server.engines.native.checkpoint.inspect import Checkpoint
from tgis_server.engines.native.checkpoint.read import read_parameters
from tgis_server.engines.native.parameters.layouts import (
    LayerRows,
    grouped_qkv,
    linear,
    positions,
    stacked,
    stacked_qkv,
)
from tgis_server.engines.native.parameters.pieces import Parameter, Split, Stored, can_split, kv_heads_of
from tgis_server.engines.native.spec import DecoderSpec
from tgis_server.model_files import Length, read_tensors
from tiny import no_progress

HIDDEN, INNER, VOCAB, HEADS, KV_HEADS, DIM = 10, 12, 7, 12, 2, 3
SPEC = DecoderSpec("test", VOCAB, HIDDEN, INNER, 1, HEADS, KV_HEADS, DIM, 1e-5, None, Length(9, "a test"), ())

# Whole weights in the plain layout, one row per output.
QUERIES, KEYS, VALUES = (torch.randn(HEADS * DIM, HIDDEN) for _ in range(3))
UP, DOWN = torch.randn(INNER, HIDDEN), torch.randn(HIDDEN, INNER)


def by_head(weight: Tensor) -> Tensor:
    return weight.view(-1, DIM, *weight.shape[1:])


def rows_of(weight: Tensor, rank: int, num_shard: int) -> Tensor:
    return weight.tensor_split(num_shard)[rank]


def qkv_of(queries: Tensor, keys: Tensor, values: Tensor, spec: DecoderSpec, rank: int, num_shard: int) -> Tensor:
    kv_heads = list(kv_heads_of(spec, rank, num_shard))
    own = [by_head(weight)[kv_heads].flatten(0, 1) for weight in (keys, values)]
    return torch.cat([rows_of(queries, rank, num_shard), *own])


def grouped(queries: Tensor, keys: Tensor, values: Tensor, num_kv_heads: int) -> Tensor:
    """For each KV head its queries, its key and its value."""
    parts = [weight.unflatten(0, (num_kv_heads, -1)) for weight in (queries, keys, values)]
    return torch.cat(parts, 1).flatten(0, 1)


def read(
    directory: Path, parameters: list[Parameter], spec: DecoderSpec, rank: int, num_shard: int
) -> dict[str, Tensor]:
    tensors = read_tensors(directory, lambda warning: None)
    shapes = {piece.tensor: piece.tensor_shape for parameter in parameters for piece in parameter.pieces}
    assert shapes == {name: info.shape for name, info in tensors.items()}  # as checked at startup
    checkpoint = Checkpoint(spec, num_shard, tensors, tuple(parameters), "float32")
    found = list(read_parameters(checkpoint, rank, torch.float32, torch.device("cpu"), no_progress))
    assert sum(tensor.numel() for _, tensor in found) == checkpoint.num_elements(rank)
    return {parameter.name: tensor for parameter, tensor in found}


RANKS = [(rank, num_shard) for num_shard in (1, 2, 3) for rank in range(num_shard)]
# With fewer KV heads than ranks, heads are copied, and ranks divide a head's group of queries.
SPLITS = [
    (num_kv_heads, rank, num_shard)
    for num_kv_heads, most in ((1, 3), (KV_HEADS, 4), (HEADS, 3))
    for num_shard in range(1, most + 1)
    if can_split(replace(SPEC, num_kv_heads=num_kv_heads), num_shard)
    for rank in range(num_shard)
]


@pytest.mark.parametrize(("num_kv_heads", "rank", "num_shard"), SPLITS)
@pytest.mark.parametrize(
    ("parts", "store"),
    [
        (stacked_qkv, lambda q, k, v, heads: torch.cat([q, k, v])),
        (
            lambda name, spec: stacked_qkv(name, spec, is_transposed=True),
            lambda q, k, v, heads: torch.cat([q, k, v]).T,
        ),
        (grouped_qkv, grouped),
    ],
    ids=["stacked", "transposed", "by KV head"],
)
def test_fused_queries_keys_and_values_are_divided_by_heads(
    parts: Callable[[str, DecoderSpec], list[LayerRows]],
    store: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    num_kv_heads: int,
    rank: int,
    num_shard: int,
    tmp_path: Path,
) -> None:
    spec = replace(SPEC, num_kv_heads=num_kv_heads)
    weights = (QUERIES, KEYS[: num_kv_heads * DIM], VALUES[: num_kv_heads * DIM])
    biases = tuple(weight[:, 0].contiguous() for weight in weights)
    bias = grouped(*biases, num_kv_heads) if store is grouped else torch.cat(biases)
    stored = {"a.weight": store(*weights, num_kv_heads).contiguous(), "a.bias": bias}
    save_file(stored, tmp_path / "model.safetensors")

    ours = read(tmp_path, linear("qkv", parts("a", spec), HIDDEN, has_bias=True), spec, rank, num_shard)

    assert torch.equal(ours["qkv"], qkv_of(*weights, spec, rank, num_shard))
    assert torch.equal(ours["qkv_bias"], qkv_of(*biases, spec, rank, num_shard))


@pytest.mark.parametrize(("rank", "num_shard"), RANKS)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_inputs_are_divided_and_only_rank_0_has_the_bias(
    is_transposed: bool, rank: int, num_shard: int, tmp_path: Path
) -> None:
    bias = torch.randn(HIDDEN)
    stored = {"a.weight": (DOWN.T if is_transposed else DOWN).contiguous(), "a.bias": bias}
    save_file(stored, tmp_path / "model.safetensors")
    part = LayerRows("a", HIDDEN, Split.COLUMNS, Stored(is_transposed=is_transposed))

    ours = read(tmp_path, linear("down", [part], INNER, has_bias=True), SPEC, rank, num_shard)

    assert torch.equal(ours["down"], rows_of(DOWN.T, rank, num_shard).T)
    assert [name for name in ours if name.endswith("bias")] == (["down_bias"] if rank == 0 else [])


@pytest.mark.parametrize(("rank", "num_shard"), RANKS)
def test_two_layers_in_one_tensor_are_divided_separately(rank: int, num_shard: int, tmp_path: Path) -> None:
    save_file({"a.weight": torch.cat([UP, UP.flip(0)])}, tmp_path / "model.safetensors")
    parts = stacked("a", [(INNER, Split.ROWS)] * 2)

    ours = read(tmp_path, linear("gate_up", parts, HIDDEN, has_bias=False), SPEC, rank, num_shard)

    assert torch.equal(ours["gate_up"], torch.cat([rows_of(UP, rank, num_shard), rows_of(UP.flip(0), rank, num_shard)]))


@pytest.mark.parametrize(("rank", "num_shard"), RANKS)
def test_a_vocabulary_is_padded_with_zeros(rank: int, num_shard: int, tmp_path: Path) -> None:
    table = torch.randn(VOCAB, HIDDEN)
    save_file({"a.weight": table}, tmp_path / "model.safetensors")
    per_rank = -(-VOCAB // num_shard)
    padded = torch.cat([table, torch.zeros(per_rank * num_shard - VOCAB, HIDDEN)])

    ours = read(
        tmp_path, linear("head", [LayerRows("a", VOCAB, Split.VOCAB)], HIDDEN, has_bias=False), SPEC, rank, num_shard
    )

    assert torch.equal(ours["head"], padded[rank * per_rank : (rank + 1) * per_rank])


def test_unused_first_rows_of_positions_are_skipped(tmp_path: Path) -> None:
    table = torch.randn(11, HIDDEN)
    save_file({"a": table}, tmp_path / "model.safetensors")

    ours = read(tmp_path, positions("a", 9, HIDDEN, offset=2), SPEC, 1, 2)

    assert torch.equal(ours["positions"], table[2:])
