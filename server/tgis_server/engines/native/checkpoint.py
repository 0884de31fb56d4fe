"""What is in a model directory's safetensors files, checked against the spec before anything is read. No torch.

Format: 8 bytes with the header's length (little endian), the header as JSON (name -> dtype, shape, data_offsets), then
the data. See https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from tgis_server import failures
from tgis_server.engines.native.families import outer_tensors, parameters_of
from tgis_server.engines.native.parameters import (
    Parameter,
    can_split,
    kv_heads_of,
    slice_of,
    valid_num_shards,
)
from tgis_server.engines.native.spec import DecoderSpec
from tgis_server.engines.native.tensors import (
    Find,
    Tell,
    TensorInfo,
    find_tensor,
    join_headers,
    settle_head,
    tell_of_unused,
)
from tgis_server.errors import TgisError
from tgis_server.model_files import WeightFiles, find_weights, read_beginning, read_weight_map, refuse_stand_in
from tgis_server.regular_file import open_regular

MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own reader
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete, readable checkpoint for ``num_shard`` ranks."""

    spec: DecoderSpec  # whose head is tied where the files agree with config.json
    num_shard: int
    tensors: dict[str, TensorInfo]  # by their names in ``parameters``; files may spell them otherwise
    parameters: tuple[Parameter, ...]
    dtype: str  # of most weights
    warnings: tuple[str, ...] = ()

    def num_elements(self, rank: int) -> int:
        """Weights that ``rank`` holds."""
        return sum(
            slice_of(piece, self.spec, rank, self.num_shard).num_elements
            for parameter in self.parameters
            for piece in parameter.pieces
        )

    def weight_bytes(self, rank: int, dtype: str) -> int:
        """Bytes of weights on ``rank`` when they are held as ``dtype``."""
        return self.num_elements(rank) * ITEM_BYTES[dtype]

    def kv_bytes_per_token(self, rank: int, dtype: str) -> int:
        """Bytes of keys and values that one token takes on ``rank``, all layers together."""
        heads = len(kv_heads_of(self.spec, rank, self.num_shard))
        return 2 * self.spec.num_layers * heads * self.spec.head_dim * ITEM_BYTES[dtype]


def inspect_checkpoint(model_dir: Path, spec: DecoderSpec, num_shard: int) -> Checkpoint:
    """Check that the checkpoint is whole and can be divided among ``num_shard`` ranks.

    Data is read only where names alone do not tell which tensor counts.

    Raises:
        ModelError: a file or tensor is missing, truncated, ambiguous, of another shape or not of floating point.
        UsageError: ``num_shard`` does not divide the model.
    """
    check_num_shard(spec, num_shard)
    warnings = list(spec.warnings)
    found = read_tensors(model_dir, warnings.append)
    find = cache(partial(find_tensor, found))  # what has to be compared is compared once
    spec = settle_head(spec, find, warnings.append)
    parameters = tuple(parameters_of(spec))
    needed: dict[str, TensorInfo] = {}
    elements: dict[str, int] = {}
    for parameter in parameters:
        for piece in parameter.pieces:
            info = find_needed(piece.tensor, find, spec, model_dir)
            if info.shape != piece.tensor_shape:
                raise failures.TENSOR_SHAPE.error(
                    file=info.file, tensor=info.name, shape=list(info.shape), expected=list(piece.tensor_shape)
                )
            if info.dtype not in DTYPES:
                raise failures.TENSOR_DTYPE.error(
                    file=info.file, tensor=info.name, dtype=info.dtype, dtypes=", ".join(DTYPES)
                )
            needed[piece.tensor] = info
            elements[info.dtype] = elements.get(info.dtype, 0) + piece.rows * max(piece.columns, 1)
    tell_of_unused(spec, found, needed, warnings.append)
    dtype = DTYPES[max(elements, key=lambda name: elements[name])]
    return Checkpoint(spec, num_shard, needed, parameters, dtype, tuple(warnings))


def find_needed(name: str, find: Find, spec: DecoderSpec, model_dir: Path) -> TensorInfo:
    """The tensor of that name; a tied model may have its head as its embedding."""
    info = find(name)
    if info is not None:
        return info
    embedding, head = outer_tensors(spec)
    if name == embedding and spec.is_head_tied and (info := find(head)) is not None:
        return info
    if name == head:
        raise failures.HEAD_MISSING.error(model_dir=model_dir, tensor=name)
    raise failures.TENSOR_MISSING.error(
        model_dir=model_dir, tensor=name, family=spec.family, num_layers=spec.num_layers
    )


def check_num_shard(spec: DecoderSpec, num_shard: int) -> None:
    if not can_split(spec, num_shard):
        raise failures.SHARDS_DO_NOT_DIVIDE.error(
            num_shard=num_shard,
            heads=spec.num_heads,
            kv_heads=spec.num_kv_heads,
            mlp=spec.intermediate_size,
            valid=", ".join(map(str, valid_num_shards(spec))),
        )


def read_tensors(model_dir: Path, tell: Tell) -> dict[str, TensorInfo]:
    """Everything that the model's safetensors files hold, whether an engine knows it or not.

    Args:
        tell: is told of copies of a tensor that are not used.

    Raises:
        ModelError: a file is missing or truncated, or two hold different tensors of one name.
    """
    files = find_weights(model_dir)
    weight_map = read_weight_map(model_dir / files.index) if files.index else {}
    return join_headers(read_headers(model_dir, files), weight_map, tell)


def read_headers(model_dir: Path, files: WeightFiles) -> Iterator[dict[str, TensorInfo]]:
    """Of each file. Errors as for :func:`read_header`."""
    return (read_header(model_dir / name) for name in files.names)


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Names, dtypes and shapes of one safetensors file, whose length must be what its header says."""
    try:
        size = file.stat().st_size
        with open_regular(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > MAX_HEADER_BYTES:
                raise _no_header(file, f"it has {size} bytes" if size < 8 else "its first bytes are no header's length")
            if length > size - 8:
                raise _truncated(file, size, 8 + length)
            raw = stream.read(length)
    except OSError as error:
        raise failures.WEIGHTS_UNREADABLE.error(file=file, reason=error.strerror) from error
    try:
        entries: dict[str, Any] = json.loads(raw)
        entries.pop("__metadata__", None)
        infos, end = {}, 0
        for name, entry in entries.items():
            start, stop = map(int, entry["data_offsets"])
            shape = tuple(map(int, entry["shape"]))
            infos[name] = TensorInfo(file, name, str(entry["dtype"]), shape, 8 + length + start, stop - start)
            end = max(end, stop)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise _no_header(file, "its header cannot be read") from error
    if size != 8 + length + end:
        raise _truncated(file, size, 8 + length + end)
    return infos


def _no_header(file: Path, reason: str) -> TgisError:
    refuse_stand_in(file, read_beginning(file))
    return failures.WEIGHTS_NO_HEADER.error(file=file, reason=reason)


def _truncated(file: Path, size: int, expected: int) -> TgisError:
    problem = "it was cut short" if size < expected else "more has been written to it"
    return failures.WEIGHTS_TRUNCATED.error(file=file, size=size, expected=expected, problem=problem)
