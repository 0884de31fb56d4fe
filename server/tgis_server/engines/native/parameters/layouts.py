"""Builders with which families describe how their checkpoints store our parameters.

Our parameters: ``embedding``, ``positions``, ``embedding_norm``, ``final_norm`` and ``head``; per layer
``attention_norm``, ``qkv``, ``q_norm``, ``k_norm``, ``o``, ``attention_post_norm``, ``mlp_norm``, ``gate_up`` (only
``up`` if the MLP is not gated), ``down`` and ``mlp_post_norm``; biases end in ``_bias``. The spec decides which exist.
"""

from __future__ import annotations

from dataclasses import dataclass

from tgis_server.engines.native.parameters.pieces import CONTIGUOUS, Kind, Parameter, Piece, Split, Stored
from tgis_server.engines.native.spec import DecoderSpec
from tgis_server.model_files import HEAD


@dataclass(frozen=True, slots=True)
class LayerRows:
    """Rows that one checkpoint layer contributes to one of our linear layers."""

    layer: str  # prefix of its tensors ``.weight`` and, if present, ``.bias``
    rows: int
    split: Split
    stored: Stored = CONTIGUOUS


def separate_qkv(prefix: str, spec: DecoderSpec) -> list[LayerRows]:
    """Queries, keys and values, each in a checkpoint layer of its own: ``q_proj``, ``k_proj`` and ``v_proj``."""
    head, rotated = spec.head_dim, rotated_rows(spec)
    return [
        LayerRows(prefix + "q_proj", spec.num_heads * head, Split.ROWS, rotated),
        LayerRows(prefix + "k_proj", spec.num_kv_heads * head, Split.KV_HEADS, rotated),
        LayerRows(prefix + "v_proj", spec.num_kv_heads * head, Split.KV_HEADS),
    ]


def rotated_rows(spec: DecoderSpec) -> Stored:
    """How a tensor of queries or keys alone is stored."""
    return Stored(paired_rows=spec.rope.rotary_dim) if spec.rope and spec.rope.is_paired else CONTIGUOUS


def stacked(layer: str, parts: list[tuple[int, Split]], *, is_transposed: bool = False) -> list[LayerRows]:
    """Several parts stacked in one checkpoint layer. ``parts``: the rows and the split of each."""
    total = sum(rows for rows, _ in parts)
    found, start = [], 0
    for rows, split in parts:
        found.append(LayerRows(layer, rows, split, Stored(start, tensor_rows=total, is_transposed=is_transposed)))
        start += rows
    return found


def stacked_qkv(layer: str, spec: DecoderSpec, *, is_transposed: bool = False) -> list[LayerRows]:
    """All queries, then all keys, then all values."""
    query_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    rows = [(query_rows, Split.ROWS), (kv_rows, Split.KV_HEADS), (kv_rows, Split.KV_HEADS)]
    return stacked(layer, rows, is_transposed=is_transposed)


def grouped_qkv(layer: str, spec: DecoderSpec) -> list[LayerRows]:
    """For each KV head its queries, key and value, as in GPT-NeoX and BLOOM (with one query), Falcon and InternLM2."""
    head, group = spec.head_dim, spec.num_kv_groups * spec.head_dim
    stride = group + 2 * head
    total = spec.num_kv_heads * stride
    return [
        LayerRows(layer, spec.num_heads * head, Split.ROWS, Stored(0, group, stride, total)),
        LayerRows(layer, spec.num_kv_heads * head, Split.KV_HEADS, Stored(group, head, stride, total)),
        LayerRows(layer, spec.num_kv_heads * head, Split.KV_HEADS, Stored(group + head, head, stride, total)),
    ]


def fused_gate_up(spec: DecoderSpec, layer: int, theirs: str) -> list[Parameter]:
    """Gate, then up, stacked in one checkpoint layer."""
    parts = stacked(theirs, [(spec.intermediate_size, Split.ROWS)] * 2)
    return linear(f"layers.{layer}.gate_up", parts, spec.hidden_size, has_bias=False)


def linear(name: str, parts: list[LayerRows], columns: int, *, has_bias: bool) -> list[Parameter]:
    """A linear layer: the stacked rows of one or more checkpoint layers.

    Args:
        name: our parameter's name.
        parts: where the rows come from.
        columns: number of inputs.
        has_bias: whether the checkpoint layers have biases.
    """
    weight = (Piece(f"{part.layer}.weight", part.rows, columns, part.split, part.stored) for part in parts)
    found = [Parameter(name, Kind.LINEAR, tuple(weight))]
    if has_bias:
        # If inputs are divided, the ranks' products are summed: only one rank may add the bias.
        bias = (
            Piece(f"{p.layer}.bias", p.rows, 0, Split.FIRST if p.split is Split.COLUMNS else p.split, p.stored)
            for p in parts
        )
        found.append(Parameter(f"{name}_bias", Kind.BIAS, tuple(bias)))
    return found


def norm(name: str, layer: str, size: int, *, has_bias: bool = False) -> list[Parameter]:
    """A norm, whole on every rank."""
    found = [Parameter(name, Kind.NORM, (Piece(f"{layer}.weight", size, 0, Split.COPY),))]
    if has_bias:
        found.append(Parameter(f"{name}_bias", Kind.BIAS, (Piece(f"{layer}.bias", size, 0, Split.COPY),)))
    return found


def embedding(spec: DecoderSpec, tensor: str) -> list[Parameter]:
    piece = Piece(tensor, spec.vocab_size, spec.hidden_size, Split.VOCAB)
    return [Parameter("embedding", Kind.EMBEDDING, (piece,))]


def positions(tensor: str, num_positions: int, columns: int, *, offset: int = 0) -> list[Parameter]:
    """A table of learned positions; the first ``offset`` rows of the tensor are unused."""
    stored = Stored(offset, tensor_rows=num_positions + offset)
    return [Parameter("positions", Kind.EMBEDDING, (Piece(tensor, num_positions, columns, Split.COPY, stored),))]


def head(spec: DecoderSpec, layer: str = HEAD.removesuffix(".weight")) -> list[Parameter]:
    """The output head; if it is tied, only its bias."""
    rows = LayerRows(layer, spec.vocab_size, Split.VOCAB)
    found = linear("head", [rows], spec.hidden_size, has_bias=spec.has_head_bias)
    return found[1:] if spec.is_head_tied else found


def o_and_down(spec: DecoderSpec, layer: int, o: str, down: str, stored: Stored = CONTIGUOUS) -> list[Parameter]:
    """The two layers whose inputs are divided among shards."""
    return [
        *linear(
            f"layers.{layer}.o",
            [LayerRows(o, spec.hidden_size, Split.COLUMNS, stored)],
            spec.num_heads * spec.head_dim,
            has_bias=spec.has_o_bias,
        ),
        *linear(
            f"layers.{layer}.down",
            [LayerRows(down, spec.hidden_size, Split.COLUMNS, stored)],
            spec.intermediate_size,
            has_bias=spec.has_mlp_bias,
        ),
    ]
