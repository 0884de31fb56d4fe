"""Checkpoint names that the families share: ``model.layers.N.self_attn.q_proj.weight`` and its relatives.

Our parameters: ``embedding``, ``head`` and ``final_norm``; per layer ``attention_norm``, ``qkv``, ``q_norm``,
``k_norm``, ``o``, ``mlp_norm``, ``gate_up`` and ``down``; biases end in ``_bias``.
"""

from __future__ import annotations

from tgis_server.engines.native.parameters import Parameter, Piece, Split
from tgis_server.engines.native.spec import DecoderSpec
from tgis_server.model_files import HEAD

EMBEDDING = "model.embed_tokens.weight"


def outer_parameters(spec: DecoderSpec) -> list[Parameter]:
    """Embedding, final norm and head."""
    hidden = spec.hidden_size
    embedding = Piece(EMBEDDING, spec.vocab_size, hidden, Split.VOCAB)
    parameters = [
        Parameter("embedding", (embedding,)),
        Parameter("final_norm", (Piece("model.norm.weight", hidden, 0, Split.COPY),)),
    ]
    if not spec.is_head_tied:
        parameters.append(Parameter("head", (Piece(HEAD, spec.vocab_size, hidden, Split.VOCAB),)))
    return parameters


def layer_norms(spec: DecoderSpec, layer: int) -> list[Parameter]:
    prefix, hidden = f"model.layers.{layer}.", spec.hidden_size
    names = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    found = [
        Parameter(f"layers.{layer}.{ours}", (Piece(f"{prefix}{theirs}.weight", hidden, 0, Split.COPY),))
        for ours, theirs in names.items()
    ]
    if spec.has_qk_norm:
        found += [
            Parameter(
                f"layers.{layer}.{name}", (Piece(f"{prefix}self_attn.{name}.weight", spec.head_dim, 0, Split.COPY),)
            )
            for name in ("q_norm", "k_norm")
        ]
    return found


def linear(
    name: str, tensors: list[tuple[str, int, Split]], columns: int, bias: Split | None, *, has_bias: bool
) -> list[Parameter]:
    """A linear layer whose rows are those of one or several checkpoint layers.

    Args:
        name: of our parameter.
        tensors: checkpoint layer, its rows, and how its weight is shared.
        columns: inputs.
        bias: how the bias is shared where that is not how the weight's rows are.
        has_bias: whether the checkpoint has one.
    """
    found = [Parameter(name, tuple(Piece(f"{t}.weight", rows, columns, split) for t, rows, split in tensors))]
    if has_bias:
        pieces = tuple(Piece(f"{t}.bias", rows, 0, bias or split) for t, rows, split in tensors)
        found.append(Parameter(f"{name}_bias", pieces))
    return found


def split_layer(spec: DecoderSpec, layer: int) -> list[Parameter]:
    """A layer whose projections are stored one by one, as in Llama."""
    prefix = f"model.layers.{layer}."
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    query_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, inner = spec.hidden_size, spec.intermediate_size
    qkv = [
        (attention + "q_proj", query_rows, Split.ROWS),
        (attention + "k_proj", kv_rows, Split.KV_HEADS),
        (attention + "v_proj", kv_rows, Split.KV_HEADS),
    ]
    gate_up = [(mlp + "gate_proj", inner, Split.ROWS), (mlp + "up_proj", inner, Split.ROWS)]
    ours = f"layers.{layer}."
    return [
        *layer_norms(spec, layer),
        *linear(ours + "qkv", qkv, hidden, None, has_bias=spec.has_qkv_bias),
        *linear(
            ours + "o",
            [(attention + "o_proj", hidden, Split.COLUMNS)],
            query_rows,
            Split.FIRST,
            has_bias=spec.has_o_bias,
        ),
        *linear(ours + "gate_up", gate_up, hidden, None, has_bias=spec.has_mlp_bias),
        *linear(
            ours + "down", [(mlp + "down_proj", hidden, Split.COLUMNS)], inner, Split.FIRST, has_bias=spec.has_mlp_bias
        ),
    ]


def split_parameters(spec: DecoderSpec) -> list[Parameter]:
    """All parameters of a checkpoint with Llama's names."""
    found = outer_parameters(spec)
    for layer in range(spec.num_layers):
        found += split_layer(spec, layer)
    return found
