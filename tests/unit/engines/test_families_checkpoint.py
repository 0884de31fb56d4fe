"""Inspecting checkpoints without torch: completeness, shapes, and division among shards."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgis_server.engines.native.checkpoint.inspect import inspect_checkpoint
from tgis_server.engines.native.families import parameters_of
from tgis_server.engines.native.parameters.pieces import kv_heads_of, slice_of, valid_num_shards, vocab_rows
from tgis_server.engines.native.spec import DecoderSpec, RopeSpec
from tgis_server.errors import ModelError, UsageError
from tgis_server.model_files import Length

SPEC = DecoderSpec(
    family="llama",
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    norm_eps=1e-5,
    positions=RopeSpec(),
    length=Length(64, "a test"),
    eos_ids=(2,),
)


def shapes_of(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    return {piece.tensor: piece.tensor_shape for parameter in parameters_of(spec) for piece in parameter.pieces}


def write_safetensors(
    file: Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: str = "F32",
    item_bytes: int = 4,
    filled: dict[str, int] | None = None,
) -> None:
    """Write a file of zeros, except for the tensors in ``filled``, which gives the byte that fills each."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in shapes.items():
        content = bytes([(filled or {}).get(name, 0)]) * (item_bytes * math.prod(shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def write_checkpoint(directory: Path, **changes: Any) -> dict[str, tuple[int, ...]]:
    shapes = {**shapes_of(SPEC), **changes}
    write_safetensors(directory / "model.safetensors", shapes)
    return shapes


def test_a_complete_checkpoint_is_accepted(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    checkpoint = inspect_checkpoint(tmp_path, SPEC, 1)

    assert checkpoint.dtype == "float32"
    assert checkpoint.num_elements(0) == sum(math.prod(shape) for shape in shapes_of(SPEC).values())
    assert checkpoint.weight_bytes(0, "bfloat16") == 2 * checkpoint.num_elements(0)


def test_kv_bytes_per_token_follow_the_kv_heads_of_a_rank(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    assert inspect_checkpoint(tmp_path, SPEC, 1).kv_bytes_per_token(0, "bfloat16") == 2 * 2 * 2 * 2 * 2
    assert inspect_checkpoint(tmp_path, SPEC, 4).kv_bytes_per_token(3, "bfloat16") == 2 * 2 * 1 * 2 * 2


def test_files_that_the_index_does_not_name_are_ignored(tmp_path: Path) -> None:
    shapes = shapes_of(SPEC)
    names = list(shapes)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, part in parts.items():
        write_safetensors(tmp_path / file, {name: shapes[name] for name in part})
    (tmp_path / "consolidated.safetensors").write_bytes(b"stray")
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    checkpoint = inspect_checkpoint(tmp_path, SPEC, 1)

    assert {info.file.name for info in checkpoint.tensors.values()} == set(parts)


def test_a_missing_file_that_the_index_names_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))

    with pytest.raises(
        ModelError, match=r"1 of 1 weight files that model\.safetensors\.index\.json names \(such as a\.safetensors"
    ):
        inspect_checkpoint(tmp_path, SPEC, 1)


def test_a_directory_without_safetensors_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()

    with pytest.raises(ModelError, match=r"pytorch_model\.bin: convert it with `tgis convert-to-safetensors`"):
        inspect_checkpoint(tmp_path, SPEC, 1)


@pytest.mark.parametrize("cut", [1, 100, 10_000_000])
def test_a_truncated_file_is_refused(cut: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: max(5, len(data) - cut)])

    with pytest.raises(ModelError, match="download it again"):
        inspect_checkpoint(tmp_path, SPEC, 1)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((10).to_bytes(8, "little") + b"not json!!" + bytes(50))

    with pytest.raises(ModelError, match="not a safetensors file"):
        inspect_checkpoint(tmp_path, SPEC, 1)


def test_a_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    shapes = shapes_of(SPEC)
    del shapes["model.layers.1.mlp.up_proj.weight"]
    write_safetensors(tmp_path / "model.safetensors", shapes)

    with pytest.raises(ModelError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        inspect_checkpoint(tmp_path, SPEC, 1)


def test_a_tensor_of_the_wrong_shape_is_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, **{"model.norm.weight": (9,)})

    with pytest.raises(ModelError, match=r"model\.norm\.weight has shape \[9\], but config\.json asks for \[8\]"):
        inspect_checkpoint(tmp_path, SPEC, 1)


def test_an_unsupported_dtype_is_refused_by_name(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", shapes_of(SPEC), dtype="F8_E4M3", item_bytes=1)

    with pytest.raises(ModelError, match="F8_E4M3"):
        inspect_checkpoint(tmp_path, SPEC, 1)


# Shards


def test_valid_numbers_of_shards_divide_heads_and_mlp() -> None:
    assert valid_num_shards(SPEC) == [1, 2, 4]
    assert valid_num_shards(replace(SPEC, num_heads=9, num_kv_heads=3, intermediate_size=18)) == [1, 3, 9]


def test_a_number_of_shards_that_does_not_divide_the_model_is_refused_with_those_that_do(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    with pytest.raises(UsageError, match=r"--num-shard 3 .* use one of 1, 2, 4"):
        inspect_checkpoint(tmp_path, SPEC, 3)


@given(st.integers(1, 500), st.integers(1, 9))
def test_ranks_share_the_vocabulary_without_gaps(vocab_size: int, num_shard: int) -> None:
    rows = [row for rank in range(num_shard) for row in vocab_rows(vocab_size, rank, num_shard)]

    assert rows == list(range(vocab_size))


@pytest.mark.parametrize("num_shard", [1, 2, 4])
def test_ranks_together_hold_every_weight(num_shard: int) -> None:
    spec = replace(SPEC, has_qkv_bias=True, has_o_bias=True, has_mlp_bias=True)
    for parameter in parameters_of(spec):
        for piece in parameter.pieces:
            cells = set()
            for rank in range(num_shard):
                part = slice_of(piece, spec, rank, num_shard)
                rows = (row for run in part.runs for row in run)
                cells |= {(row, column) for row in rows for column in (part.columns or range(1))}
            assert cells == {(row, column) for row in range(piece.rows) for column in range(piece.columns or 1)}


def test_with_more_shards_than_kv_heads_neighbours_hold_the_same_head() -> None:
    assert [list(kv_heads_of(SPEC, rank, 4)) for rank in range(4)] == [[0], [0], [1], [1]]


def test_ranks_hold_the_kv_heads_of_their_query_heads() -> None:
    for num_shard in (1, 2, 4):
        for rank in range(num_shard):
            queries = range(rank * 4 // num_shard, (rank + 1) * 4 // num_shard)
            assert {head // SPEC.num_kv_groups for head in queries} == set(kv_heads_of(SPEC, rank, num_shard))
