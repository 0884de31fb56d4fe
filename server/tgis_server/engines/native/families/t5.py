"""T5 and models with its layout (Flan-T5): an encoder and a decoder with relative positions.

Not served yet: ``read_spec`` accepts T5 only if it is given ``ALL_FAMILIES``.

Version 1.0 has a plain MLP and uses its embedding as its head. Version 1.1 has a gated MLP and a separate head.
"""

from __future__ import annotations

from typing import Any

from tgis_server.engines.native.config.config_file import ACTIVATIONS, ConfigFile, show
from tgis_server.engines.native.config.end_tokens import read_eos_ids
from tgis_server.engines.native.parameters.layouts import LayerRows, embedding, head, linear, norm
from tgis_server.engines.native.parameters.pieces import Kind, Parameter, Piece, Split
from tgis_server.engines.native.spec import Activation, DecoderSpec, EncoderDecoderSpec, RelativePositions
from tgis_server.model_files import LENGTH_KEYS, Length, find_length

ARCHITECTURE = "T5ForConditionalGeneration"
EMBEDDING = "shared.weight"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,  # num_layers
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "scale_decoder_outputs": None,  # default: tie_word_embeddings; transformers 5 writes this key
    "decoder_start_token_id": None,
    "eos_token_id": 1,
    "dtype": None,
    "torch_dtype": None,
}


def read(config: ConfigFile) -> EncoderDecoderSpec:
    heads, num_layers = config.integer("num_heads"), config.integer("num_layers")
    vocab_size = config.integer("vocab_size")
    activation, is_mlp_gated = read_mlp(config)
    positions = RelativePositions(
        config.integer("relative_attention_num_buckets"), config.integer("relative_attention_max_distance")
    )
    warnings: list[str] = []
    shared: dict[str, Any] = {
        "family": "t5",
        "vocab_size": vocab_size,
        "hidden_size": config.integer("d_model"),
        "intermediate_size": config.integer("d_ff"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": config.integer("d_kv"),
        "norm_eps": config.number("layer_norm_epsilon"),
        "positions": positions,
        "length": read_length(config),
        "eos_ids": read_eos_ids(config, vocab_size, warnings.append),
        "activation": activation,
        "is_mlp_gated": is_mlp_gated,
        "attention_scale": 1.0,  # the weights include the scale
        "dtype": config.dtype(),
    }
    num_decoder_layers = config.optional_integer("num_decoder_layers") or num_layers
    return EncoderDecoderSpec(
        **shared,
        num_layers=num_decoder_layers,
        windows=(None,) * num_decoder_layers,
        is_head_tied=config.flag("tie_word_embeddings"),
        logits_scale=shared["hidden_size"] ** -0.5 if is_head_scaled(config) else 1.0,
        encoder=DecoderSpec(**shared, num_layers=num_layers, windows=(None,) * num_layers),
        start_id=config.integer("decoder_start_token_id", at_least=0),
        warnings=tuple(warnings),
    )


def read_mlp(config: ConfigFile) -> tuple[Activation, bool]:
    """Activation, and whether the MLP is gated. ``gated-gelu`` means GPT-2's approximation of GELU."""
    name = config.get("feed_forward_proj")
    gated, _, activation = str(name).rpartition("-")
    if gated not in ("", "gated") or activation not in ACTIVATIONS:
        raise config.fail(
            f"feed_forward_proj {show(name)} is not supported; the supported values are {', '.join(ACTIVATIONS)}, "
            "each also with the prefix gated-."
        )
    return ACTIVATIONS["gelu_new" if name == "gated-gelu" else activation], gated == "gated"


def is_head_scaled(config: ConfigFile) -> bool:
    """Whether the head's input is scaled: as transformers 5's key says or, without that key, if the head is tied."""
    key = "scale_decoder_outputs"
    return config.flag("tie_word_embeddings" if config.get(key) is None else key)


def read_length(config: ConfigFile) -> Length:
    named = find_length({key: config.stated(key) for key in LENGTH_KEYS})
    return named or Length(2048, "config.json names none, and relative positions have no limit")


def parameters(spec: EncoderDecoderSpec) -> list[Parameter]:
    return [
        *embedding(spec, EMBEDDING),
        *stack(spec.encoder, "encoder.", "encoder.", has_cross=False),
        *stack(spec, "", "decoder.", has_cross=True),
        *head(spec),
    ]


def stack(spec: DecoderSpec, ours: str, theirs: str, *, has_cross: bool) -> list[Parameter]:
    """All layers of the encoder or the decoder, and the parameters that the layers share.

    Args:
        spec: the spec of this stack.
        ours: prefix of our names.
        theirs: prefix of the checkpoint's names.
        has_cross: whether the layers attend to the encoder's output.
    """
    assert isinstance(spec.positions, RelativePositions)
    table = f"{theirs}block.0.layer.0.SelfAttention.relative_attention_bias.weight"  # shared by all layers
    piece = Piece(table, spec.positions.num_buckets, spec.num_heads, Split.COLUMNS)
    found = [Parameter(ours + "relative_bias", Kind.EMBEDDING, (piece,))]
    for i in range(spec.num_layers):
        layer, block = f"{ours}layers.{i}.", f"{theirs}block.{i}.layer."
        found += attention(spec, layer, f"{block}0.SelfAttention", f"{block}0.layer_norm")
        if has_cross:
            found += cross_attention(spec, layer, f"{block}1.EncDecAttention", f"{block}1.layer_norm")
        found += mlp(spec, layer, f"{block}{1 + has_cross}.DenseReluDense", f"{block}{1 + has_cross}.layer_norm")
    return found + norm(ours + "final_norm", theirs + "final_layer_norm", spec.hidden_size)


def attention(spec: DecoderSpec, layer: str, theirs: str, their_norm: str) -> list[Parameter]:
    rows, hidden = spec.num_heads * spec.head_dim, spec.hidden_size
    qkv = [LayerRows(f"{theirs}.{name}", rows, Split.ROWS) for name in "qkv"]
    return [
        *norm(layer + "attention_norm", their_norm, hidden),
        *linear(layer + "qkv", qkv, hidden, has_bias=False),
        *linear(layer + "o", [LayerRows(theirs + ".o", hidden, Split.COLUMNS)], rows, has_bias=False),
    ]


def cross_attention(spec: DecoderSpec, layer: str, theirs: str, their_norm: str) -> list[Parameter]:
    rows, hidden = spec.num_heads * spec.head_dim, spec.hidden_size
    keys_values = [LayerRows(f"{theirs}.{name}", rows, Split.ROWS) for name in "kv"]
    return [
        *norm(layer + "cross_norm", their_norm, hidden),
        *linear(layer + "cross_q", [LayerRows(theirs + ".q", rows, Split.ROWS)], hidden, has_bias=False),
        *linear(layer + "cross_kv", keys_values, hidden, has_bias=False),
        *linear(layer + "cross_o", [LayerRows(theirs + ".o", hidden, Split.COLUMNS)], rows, has_bias=False),
    ]


def mlp(spec: DecoderSpec, layer: str, theirs: str, their_norm: str) -> list[Parameter]:
    inner, hidden = spec.intermediate_size, spec.hidden_size
    ours, names = ("gate_up", ["wi_0", "wi_1"]) if spec.is_mlp_gated else ("up", ["wi"])
    parts = [LayerRows(f"{theirs}.{name}", inner, Split.ROWS) for name in names]
    return [
        *norm(layer + "mlp_norm", their_norm, hidden),
        *linear(layer + ours, parts, hidden, has_bias=False),
        *linear(layer + "down", [LayerRows(theirs + ".wo", hidden, Split.COLUMNS)], inner, has_bias=False),
    ]
