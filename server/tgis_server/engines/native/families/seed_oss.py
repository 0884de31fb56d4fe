"""Seed-OSS: Llama's layout, with a separate switch for the bias after attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "SeedOssForCausalLM"
DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "vocab_size": 155136,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 80,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 524288,
    "attention_bias": True,
    "attention_out_bias": False,
}

parameters = llama.parameters


def read(config: ConfigFile) -> DecoderSpec:
    return replace(llama.read(config), family="seed_oss", has_o_bias=config.flag("attention_out_bias"))
