"""Cohere (Command R): LayerNorms without biases, attention and MLP in parallel, and in some models norms over heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.layouts import rotated_rows
from tgis_server.engines.native.parameters.pieces import Kind, Parameter, Piece, Split
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "CohereForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value for key, value in llama.DEFAULTS.items() if key not in ("rms_norm_eps", "mlp_bias", "head_dim")
} | {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "use_qk_norm": False,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 255001,
}
KEYS = Keys(head_dim="", norm_eps="layer_norm_eps")


def read(config: ConfigFile) -> DecoderSpec:
    return replace(read_cohere(config, "cohere"), qk_norm="layer" if config.flag("use_qk_norm") else None)


def read_cohere(config: ConfigFile, family: str) -> DecoderSpec:
    rope = replace(read_rope(config, read_head_dim(config, KEYS)), is_paired=True)
    attention_bias = config.flag("attention_bias")
    return replace(
        read_decoder(config, family, KEYS, rope, read_length(config, rope)),
        norm="layer",
        residual="parallel",
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        logits_scale=config.positive_number("logit_scale"),
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        found += [
            *llama.layer_norms(spec, layer, {"attention_norm": "input_layernorm"}),
            *qk_norms(spec, layer),
            *llama.linear_layers(spec, layer),
        ]
    return found


def qk_norms(spec: DecoderSpec, layer: int) -> list[Parameter]:
    """Each head has weights of its own."""
    if not spec.qk_norm:
        return []
    return [
        Parameter(
            f"layers.{layer}.{name}",
            Kind.NORM,
            (
                Piece(
                    f"model.layers.{layer}.self_attn.{name}.weight", num_heads, spec.head_dim, split, rotated_rows(spec)
                ),
            ),
        )
        for name, num_heads, split in (
            ("q_norm", spec.num_heads, Split.ROWS),
            ("k_norm", spec.num_kv_heads, Split.KV_HEADS),
        )
    ]
