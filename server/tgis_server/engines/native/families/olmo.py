"""OLMo 1: Llama's layout with LayerNorms that have no weights, and in some models limited queries, keys and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.layouts import embedding, head
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "OlmoForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value for key, value in llama.DEFAULTS.items() if key not in ("rms_norm_eps", "mlp_bias", "head_dim")
} | {
    "vocab_size": 50304,
    "clip_qkv": None,
    "eos_token_id": 50279,
}
KEYS = Keys(head_dim="", norm_eps="")


def read(config: ConfigFile) -> DecoderSpec:
    rope = read_rope(config, read_head_dim(config, KEYS))
    attention_bias = config.flag("attention_bias")
    return replace(
        read_decoder(config, "olmo", KEYS, rope, read_length(config, rope)),
        norm="layer",
        has_norm_weight=False,
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        qkv_limit=config.optional_positive_number("clip_qkv") or 0.0,
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = [*embedding(spec, "model.embed_tokens.weight"), *head(spec)]
    for layer in range(spec.num_layers):
        found += llama.linear_layers(spec, layer)
    return found
