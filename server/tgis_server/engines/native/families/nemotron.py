"""Nemotron: LayerNorms whose weights are stored minus one, partial rotation, and a plain MLP with a squared ReLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families import arcee, llama
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "NemotronForCausalLM"
DEFAULTS: dict[str, Any] = {key: value for key, value in llama.DEFAULTS.items() if key != "rms_norm_eps"} | {
    "vocab_size": 256000,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_attention_heads": 48,
    "hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "eos_token_id": 3,
}
KEYS = Keys(norm_eps="norm_eps")

parameters = arcee.parameters


def read(config: ConfigFile) -> DecoderSpec:
    rope = read_rope(config, read_head_dim(config, KEYS), may_be_partial=True)
    attention_bias = config.flag("attention_bias")
    return replace(
        read_decoder(config, "nemotron", KEYS, rope, read_length(config, rope)),
        norm="layer_plus_one",
        is_mlp_gated=False,
        has_norm_bias=True,
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        has_mlp_bias=config.flag("mlp_bias"),
    )
