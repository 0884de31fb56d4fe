"""Helium: Llama's layout with a rotation of neighbouring dimensions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import read_head_dim
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "HeliumForCausalLM"
DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "vocab_size": 48000,
    "hidden_size": 2560,
    "intermediate_size": 7040,
    "num_hidden_layers": 24,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-8,
    "rope_theta": 100000.0,
}

parameters = llama.parameters


def read(config: ConfigFile) -> DecoderSpec:
    rope = replace(read_rope(config, read_head_dim(config)), is_paired=True)
    return replace(
        llama.read_llama(config, "helium", rope),
        has_qkv_bias=config.flag("attention_bias"),
        has_mlp_bias=config.flag("mlp_bias"),
    )
