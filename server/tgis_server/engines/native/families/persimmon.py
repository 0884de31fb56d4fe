"""Persimmon: GPT-NeoX's layout with serial residuals, a squared ReLU, and LayerNorms over queries and keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim, with_biases
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families import llama, phi
from tgis_server.engines.native.parameters.layouts import grouped_qkv, linear, o_and_down, up_layer
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "PersimmonForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value for key, value in phi.DEFAULTS.items() if key not in ("num_key_value_heads", "head_dim")
} | {
    "vocab_size": 262144,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "hidden_act": "relu2",
    "max_position_embeddings": 16384,
    "qk_layernorm": True,
}
KEYS = Keys(num_kv_heads="", head_dim="", norm_eps="layer_norm_eps")


def read(config: ConfigFile) -> DecoderSpec:
    rope = read_rope(config, read_head_dim(config, KEYS), may_be_partial=True)
    return replace(
        with_biases(read_decoder(config, "persimmon", KEYS, rope, read_length(config, rope))),
        qk_norm="layer" if config.flag("qk_layernorm") else None,
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    hidden = spec.hidden_size
    found = llama.outer_parameters(spec, "model.final_layernorm")
    for layer in range(spec.num_layers):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        qkv = grouped_qkv(theirs + "self_attn.query_key_value", spec)
        found += [
            *llama.layer_norms(spec, layer),
            *llama.qk_norms(spec, layer, "layernorm"),
            *linear(ours + "qkv", qkv, hidden, has_bias=True),
            *up_layer(spec, layer, theirs + "mlp.dense_h_to_4h"),
            *o_and_down(spec, layer, theirs + "self_attn.dense", theirs + "mlp.dense_4h_to_h"),
        ]
    return found
