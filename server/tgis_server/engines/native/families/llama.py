"""Llama and what shares its layout (SmolLM, TinyLlama, Vicuna, Yi)."""

from __future__ import annotations

from dataclasses import replace

from tgis_server.engines.native.families.common import DEFAULTS, read_decoder
from tgis_server.engines.native.families.config_file import ConfigFile
from tgis_server.engines.native.families.names import split_parameters as parameters
from tgis_server.engines.native.spec import DecoderSpec

__all__ = ["ARCHITECTURE", "DEFAULTS", "parameters", "read"]

ARCHITECTURE = "LlamaForCausalLM"


def read(config: ConfigFile) -> DecoderSpec:
    attention_bias = config.flag("attention_bias")
    return replace(
        read_decoder(config, "llama"),
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        has_mlp_bias=config.flag("mlp_bias"),
    )
