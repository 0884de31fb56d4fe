"""Builders with which families describe how their checkpoints store our parameters.

Our parameters: ``embedding``, ``positions``, ``embedding_norm``, ``final_norm`` and ``head``; per layer
``attention_norm``, ``qkv``, ``q_norm``, ``k_norm``, ``sinks``, ``o``, ``attention_post_norm``, ``mlp_norm``,
``gate_up`` (only ``up`` if the MLP is not gated), ``down`` and ``mlp_post_norm``; biases end in ``_bias``. On layers
with a mixture of experts, in place of the MLP: ``router``, ``choice_bias``, ``experts.0.gate_up``, ``experts.0.down``,
``shared_gate_up``, ``shared_down`` and ``shared_gate``. The spec decides which exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tgis_server.engines.native.parameters.pieces import CONTIGUOUS, Kind, Parameter, Piece, Split, Stored
from tgis_server.engines.native.spec import DecoderSpec, Mixture
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


def router(
    spec: DecoderSpec, layer: int, theirs: str, choice_bias: str = "", *, is_stacked: bool = False
) -> list[Parameter]:
    """The layer that scores experts.

    Args:
        spec: the architecture.
        layer: its index.
        theirs: the checkpoint's layer.
        choice_bias: the tensor of that name, if the family has one.
        is_stacked: whether that tensor has a leading dimension of 1.
    """
    mixture = mixture_of(spec)
    rows = [LayerRows(theirs, mixture.num_experts, Split.COPY)]
    found = linear(f"layers.{layer}.router", rows, spec.hidden_size, has_bias=mixture.has_router_bias)
    if mixture.has_choice_bias:
        stored = Stored(num_stacked=1) if is_stacked else CONTIGUOUS
        piece = Piece(choice_bias, mixture.num_experts, 0, Split.COPY, stored)
        found.append(Parameter(f"layers.{layer}.choice_bias", Kind.CHOICE_BIAS, (piece,)))
    return found


def separate_experts(
    spec: DecoderSpec, layer: int, theirs: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> list[Parameter]:
    """Experts whose linear layers are checkpoint layers of their own. ``names``: gate, up and down."""
    inner = mixture_of(spec).intermediate_size
    found = []
    for expert in range(mixture_of(spec).num_experts):
        ours, prefix = f"layers.{layer}.experts.{expert}.", f"{theirs}.{expert}."
        gate_up = [LayerRows(prefix + name, inner, Split.ROWS) for name in names[:2]]
        down = [LayerRows(prefix + names[2], spec.hidden_size, Split.COLUMNS)]
        found += linear(ours + "gate_up", gate_up, spec.hidden_size, has_bias=False)
        found += linear(ours + "down", down, inner, has_bias=False)
    return found


def stacked_experts(
    spec: DecoderSpec, layer: int, gate_up: str, down: str, *, is_transposed: bool = False, is_interleaved: bool = False
) -> list[Parameter]:
    """Experts whose weights are stacked in one tensor, each with its gate and up.

    Args:
        spec: the architecture.
        layer: its index.
        gate_up: the tensor; that of the biases, if there are any, ends in ``_bias``.
        down: likewise.
        is_transposed: whether the tensors of each expert are (inputs, outputs).
        is_interleaved: whether outputs of gate and up alternate.
    """
    mixture, hidden = mixture_of(spec), spec.hidden_size
    inner, count = mixture.intermediate_size, mixture.num_experts
    starts, run_rows, stride = ((0, 1), 1, 2) if is_interleaved else ((0, inner), 0, 0)
    found = []
    for expert in range(count):
        ours = f"layers.{layer}.experts.{expert}."
        parts = [Stored(start, run_rows, stride, 2 * inner, index=expert, num_stacked=count) for start in starts]
        whole = Stored(index=expert, num_stacked=count)
        flipped = [replace(stored, is_transposed=is_transposed) for stored in (*parts, whole)]
        gate_up_weights = tuple(Piece(gate_up, inner, hidden, Split.ROWS, stored) for stored in flipped[:2])
        found.append(Parameter(ours + "gate_up", Kind.LINEAR, gate_up_weights))
        found.append(Parameter(ours + "down", Kind.LINEAR, (Piece(down, hidden, inner, Split.COLUMNS, flipped[2]),)))
        if mixture.has_bias:
            biases = tuple(Piece(f"{gate_up}_bias", inner, 0, Split.ROWS, stored) for stored in parts)
            found.append(Parameter(ours + "gate_up_bias", Kind.BIAS, biases))
            down_bias = Piece(f"{down}_bias", hidden, 0, Split.FIRST, whole)
            found.append(Parameter(ours + "down_bias", Kind.BIAS, (down_bias,)))
    return found


def sinks(spec: DecoderSpec, layer: int, tensor: str) -> list[Parameter]:
    """One score for each query head, if the family has them."""
    pieces = (Piece(tensor, spec.num_heads, 0, Split.ROWS),)
    return [Parameter(f"layers.{layer}.sinks", Kind.BIAS, pieces)] if spec.has_sinks else []


def shared_mlp(spec: DecoderSpec, layer: int, theirs: str, gate: str = "") -> list[Parameter]:
    """The MLP beside the experts, if there is one. ``gate``: the layer whose sigmoid multiplies its result."""
    mixture, ours, found = mixture_of(spec), f"layers.{layer}.shared_", []
    if mixture.shared_size:
        gate_up = [LayerRows(f"{theirs}.{name}", mixture.shared_size, Split.ROWS) for name in ("gate_proj", "up_proj")]
        down = [LayerRows(f"{theirs}.down_proj", spec.hidden_size, Split.COLUMNS)]
        found += linear(ours + "gate_up", gate_up, spec.hidden_size, has_bias=spec.has_mlp_bias)
        found += linear(ours + "down", down, mixture.shared_size, has_bias=spec.has_mlp_bias)
    if mixture.is_shared_gated:
        found += linear(ours + "gate", [LayerRows(gate, 1, Split.COPY)], spec.hidden_size, has_bias=False)
    return found


def mixture_of(spec: DecoderSpec) -> Mixture:
    assert spec.mixture is not None, "a layer has experts only if the spec has a mixture"
    return spec.mixture


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
    return [*o_layer(spec, layer, o, stored), *down_layer(spec, layer, down, stored)]


def o_layer(spec: DecoderSpec, layer: int, theirs: str, stored: Stored = CONTIGUOUS) -> list[Parameter]:
    rows = [LayerRows(theirs, spec.hidden_size, Split.COLUMNS, stored)]
    return linear(f"layers.{layer}.o", rows, spec.num_heads * spec.head_dim, has_bias=spec.has_o_bias)


def up_layer(spec: DecoderSpec, layer: int, theirs: str, stored: Stored = CONTIGUOUS) -> list[Parameter]:
    """The first layer of an MLP that is not gated."""
    rows = [LayerRows(theirs, spec.intermediate_size, Split.ROWS, stored)]
    return linear(f"layers.{layer}.up", rows, spec.hidden_size, has_bias=spec.has_mlp_bias)


def down_layer(spec: DecoderSpec, layer: int, theirs: str, stored: Stored = CONTIGUOUS) -> list[Parameter]:
    rows = [LayerRows(theirs, spec.hidden_size, Split.COLUMNS, stored)]
    return linear(f"layers.{layer}.down", rows, spec.intermediate_size, has_bias=spec.has_mlp_bias)
