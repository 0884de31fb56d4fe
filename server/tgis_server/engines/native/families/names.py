"""How checkpoints name and store what becomes our parameters: helpers of the families, and the names that Llama uses.

Our parameters: ``embedding``, ``positions``, ``embedding_norm``, ``final_norm`` and ``head``; per layer
``attention_norm``, ``qkv``, ``q_norm``, ``k_norm``, ``o``, ``attention_post_norm``, ``mlp_norm``, ``gate_up`` (``up``
alone where the MLP is not gated), ``down`` and ``mlp_post_norm``; biases end in ``_bias``. Which of them there are
follows from the spec.
"""

from __future__ import annotations

from dataclasses import dataclass

from tgis_server.engines.native.parameters import CONTIGUOUS, Kind, Parameter, Piece, Split, Stored
from tgis_server.engines.native.spec import DecoderSpec
from tgis_server.model_files import HEAD

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Part:
    """What one checkpoint layer gives to a linear layer of ours."""

    layer: str  # its tensors are ``.weight`` and perhaps ``.bias``
    rows: int
    split: Split
    stored: Stored = CONTIGUOUS


def in_a_row(layer: str, parts: list[tuple[int, Split]], *, is_transposed: bool = False) -> list[Part]:
    """A checkpoint layer that holds several of ours one after the other: their rows, and how they are shared."""
    total = sum(rows for rows, _ in parts)
    found, start = [], 0
    for rows, split in parts:
        found.append(Part(layer, rows, split, Stored(start, tensor_rows=total, is_transposed=is_transposed)))
        start += rows
    return found


def qkv_in_a_row(layer: str, spec: DecoderSpec, *, is_transposed: bool = False) -> list[Part]:
    """All queries, then all keys, then all values."""
    query_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    rows = [(query_rows, Split.ROWS), (kv_rows, Split.KV_HEADS), (kv_rows, Split.KV_HEADS)]
    return in_a_row(layer, rows, is_transposed=is_transposed)


def qkv_by_kv_head(layer: str, spec: DecoderSpec) -> list[Part]:
    """For each KV head its queries, its key and its value: GPT-NeoX and BLOOM (one query each), Falcon, InternLM2."""
    head, group = spec.head_dim, spec.num_kv_groups * spec.head_dim
    stride = group + 2 * head
    total = spec.num_kv_heads * stride
    return [
        Part(layer, spec.num_heads * head, Split.ROWS, Stored(0, group, stride, total)),
        Part(layer, spec.num_kv_heads * head, Split.KV_HEADS, Stored(group, head, stride, total)),
        Part(layer, spec.num_kv_heads * head, Split.KV_HEADS, Stored(group + head, head, stride, total)),
    ]


def linear(name: str, parts: list[Part], columns: int, *, has_bias: bool) -> list[Parameter]:
    """A linear layer: rows of one or several checkpoint layers on top of each other.

    Args:
        name: of our parameter.
        parts: where the rows come from.
        columns: inputs.
        has_bias: whether the checkpoint layers have biases.
    """
    weight = (Piece(f"{part.layer}.weight", part.rows, columns, part.split, part.stored) for part in parts)
    found = [Parameter(name, Kind.LINEAR, tuple(weight))]
    if has_bias:
        # Where ranks hold some of the inputs, their products are summed: the bias may come only once.
        bias = (
            Piece(f"{p.layer}.bias", p.rows, 0, Split.FIRST if p.split is Split.COLUMNS else p.split, p.stored)
            for p in parts
        )
        found.append(Parameter(f"{name}_bias", Kind.BIAS, tuple(bias)))
    return found


def norm(name: str, layer: str, size: int, *, has_bias: bool = False) -> list[Parameter]:
    """A norm; every rank holds all of it."""
    found = [Parameter(name, Kind.NORM, (Piece(f"{layer}.weight", size, 0, Split.COPY),))]
    if has_bias:
        found.append(Parameter(f"{name}_bias", Kind.BIAS, (Piece(f"{layer}.bias", size, 0, Split.COPY),)))
    return found


def embedding(spec: DecoderSpec, tensor: str = EMBEDDING) -> list[Parameter]:
    piece = Piece(tensor, spec.vocab_size, spec.hidden_size, Split.VOCAB)
    return [Parameter("embedding", Kind.EMBEDDING, (piece,))]


def positions(tensor: str, num_positions: int, columns: int, *, offset: int = 0) -> list[Parameter]:
    """A table of learned positions, whose first ``offset`` rows in the files are never used."""
    stored = Stored(offset, tensor_rows=num_positions + offset)
    return [Parameter("positions", Kind.EMBEDDING, (Piece(tensor, num_positions, columns, Split.COPY, stored),))]


def head(spec: DecoderSpec, layer: str = HEAD.removesuffix(".weight")) -> list[Parameter]:
    """The output head; where it is tied, its bias alone."""
    found = linear("head", [Part(layer, spec.vocab_size, Split.VOCAB)], spec.hidden_size, has_bias=spec.has_head_bias)
    return found[1:] if spec.is_head_tied else found


# -- Llama's names -----------------------------------------------------------------------------------------------------


def outer_parameters(spec: DecoderSpec, final_norm: str = "model.norm") -> list[Parameter]:
    """Embedding, final norm and head."""
    return [
        *embedding(spec),
        *norm("final_norm", final_norm, spec.hidden_size, has_bias=spec.has_norm_bias),
        *head(spec),
    ]


def layer_norms(spec: DecoderSpec, layer: int) -> list[Parameter]:
    prefix, hidden = f"model.layers.{layer}.", spec.hidden_size
    found = [
        *norm(f"layers.{layer}.attention_norm", f"{prefix}input_layernorm", hidden),
        *norm(f"layers.{layer}.mlp_norm", f"{prefix}post_attention_layernorm", hidden),
    ]
    if spec.qk_norm:
        for name in ("q_norm", "k_norm"):
            found += norm(f"layers.{layer}.{name}", f"{prefix}self_attn.{name}", spec.head_dim)
    return found


def split_qkv(spec: DecoderSpec, layer: int) -> list[Parameter]:
    attention = f"model.layers.{layer}.self_attn."
    query_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    parts = [
        Part(attention + "q_proj", query_rows, Split.ROWS),
        Part(attention + "k_proj", kv_rows, Split.KV_HEADS),
        Part(attention + "v_proj", kv_rows, Split.KV_HEADS),
    ]
    return linear(f"layers.{layer}.qkv", parts, spec.hidden_size, has_bias=spec.has_qkv_bias)


def split_gate_up(spec: DecoderSpec, layer: int) -> list[Parameter]:
    mlp, inner = f"model.layers.{layer}.mlp.", spec.intermediate_size
    parts = [Part(mlp + name, inner, Split.ROWS) for name in ("gate_proj", "up_proj")]
    return linear(f"layers.{layer}.gate_up", parts, spec.hidden_size, has_bias=spec.has_mlp_bias)


def o_and_down(spec: DecoderSpec, layer: int, o: str, down: str, stored: Stored = CONTIGUOUS) -> list[Parameter]:
    """The two layers whose inputs the shards divide."""
    return [
        *linear(
            f"layers.{layer}.o",
            [Part(o, spec.hidden_size, Split.COLUMNS, stored)],
            spec.num_heads * spec.head_dim,
            has_bias=spec.has_o_bias,
        ),
        *linear(
            f"layers.{layer}.down",
            [Part(down, spec.hidden_size, Split.COLUMNS, stored)],
            spec.intermediate_size,
            has_bias=spec.has_mlp_bias,
        ),
    ]


def split_layer(spec: DecoderSpec, layer: int) -> list[Parameter]:
    """A layer whose projections are stored one by one, as in Llama."""
    prefix = f"model.layers.{layer}."
    return [
        *layer_norms(spec, layer),
        *split_qkv(spec, layer),
        *split_gate_up(spec, layer),
        *o_and_down(spec, layer, prefix + "self_attn.o_proj", prefix + "mlp.down_proj"),
    ]


def split_parameters(spec: DecoderSpec) -> list[Parameter]:
    """All parameters of a checkpoint with Llama's names."""
    found = outer_parameters(spec)
    for layer in range(spec.num_layers):
        found += split_layer(spec, layer)
    return found
