"""Llama and models with its layout (SmolLM, TinyLlama, Vicuna, Yi). Most other families build on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import LLAMA_KEYS, read_decoder, read_head_dim
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.parameters.layouts import (
    LayerRows,
    down_layer,
    embedding,
    head,
    linear,
    norm,
    o_layer,
    separate_qkv,
)
from tgis_server.engines.native.parameters.pieces import Kind, Parameter, Piece, Split
from tgis_server.engines.native.spec import DecoderSpec, RopeSpec

ARCHITECTURE = "LlamaForCausalLM"

# The defaults of LlamaConfig in transformers, for keys that config.json omits. Other families replace the defaults in
# which their classes differ. Every key that a family reads has an entry.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # num_attention_heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "eos_token_id": 2,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": None,  # from the rope parameters, else max_position_embeddings
    "layer_types": None,
    "dtype": None,
    "torch_dtype": None,
}
NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def read(config: ConfigFile) -> DecoderSpec:
    attention_bias = config.flag("attention_bias")
    return replace(
        read_llama(config, "llama"),
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        has_mlp_bias=config.flag("mlp_bias"),
    )


def read_llama(config: ConfigFile, family: str, rope: RopeSpec | None = None) -> DecoderSpec:
    """Llama's decoder without biases; other families replace the parts in which they differ."""
    rope = rope or read_rope(config, read_head_dim(config))
    return read_decoder(config, family, LLAMA_KEYS, rope, read_length(config, rope))


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = outer_parameters(spec)
    for layer in range(spec.num_layers):
        found += [*layer_norms(spec, layer), *qk_norms(spec, layer), *linear_layers(spec, layer)]
    return found


def outer_parameters(spec: DecoderSpec, final_norm: str = "model.norm") -> list[Parameter]:
    """Embedding, final norm and head."""
    return [
        *embedding(spec, "model.embed_tokens.weight"),
        *norm("final_norm", final_norm, spec.hidden_size, has_bias=spec.has_norm_bias),
        *head(spec),
    ]


def layer_norms(spec: DecoderSpec, layer: int, names: Mapping[str, str] = NORMS) -> list[Parameter]:
    """The norms over whole tokens. ``names``: theirs by ours."""
    return [
        parameter
        for ours, theirs in names.items()
        for parameter in norm(
            f"layers.{layer}.{ours}", f"model.layers.{layer}.{theirs}", spec.hidden_size, has_bias=spec.has_norm_bias
        )
    ]


def qk_norms(spec: DecoderSpec, layer: int, suffix: str = "norm") -> list[Parameter]:
    """The norms of queries and keys, over each head or over all of them, if there are any."""
    theirs, ours = f"model.layers.{layer}.self_attn.", f"layers.{layer}."
    if spec.is_qk_norm_joint:
        query = Piece(theirs + "q_norm.weight", spec.num_heads * spec.head_dim, 0, Split.ROWS)
        key = Piece(theirs + "k_norm.weight", spec.num_kv_heads * spec.head_dim, 0, Split.KV_HEADS)
        return [Parameter(ours + "q_norm", Kind.NORM, (query,)), Parameter(ours + "k_norm", Kind.NORM, (key,))]
    return [
        parameter
        for which in ("q", "k")
        if spec.qk_norm
        for parameter in norm(
            f"{ours}{which}_norm", f"{theirs}{which}_{suffix}", spec.head_dim, has_bias=spec.has_norm_bias
        )
    ]


def linear_layers(spec: DecoderSpec, layer: int) -> list[Parameter]:
    """A layer without its norms."""
    return [*attention_layers(spec, layer), *mlp_layers(spec, layer)]


def attention_layers(spec: DecoderSpec, layer: int) -> list[Parameter]:
    return [*split_qkv(spec, layer), *o_layer(spec, layer, f"model.layers.{layer}.self_attn.o_proj")]


def mlp_layers(spec: DecoderSpec, layer: int) -> list[Parameter]:
    return [*split_gate_up(spec, layer), *down_layer(spec, layer, f"model.layers.{layer}.mlp.down_proj")]


def split_qkv(spec: DecoderSpec, layer: int) -> list[Parameter]:
    """Queries, keys and values, each from a checkpoint layer of its own."""
    parts = separate_qkv(f"model.layers.{layer}.self_attn.", spec)
    return linear(f"layers.{layer}.qkv", parts, spec.hidden_size, has_bias=spec.has_qkv_bias)


def split_gate_up(spec: DecoderSpec, layer: int) -> list[Parameter]:
    """Gate and up, each from a checkpoint layer of its own."""
    mlp, inner = f"model.layers.{layer}.mlp.", spec.intermediate_size
    parts = [LayerRows(mlp + name, inner, Split.ROWS) for name in ("gate_proj", "up_proj")]
    return linear(f"layers.{layer}.gate_up", parts, spec.hidden_size, has_bias=spec.has_mlp_bias)
