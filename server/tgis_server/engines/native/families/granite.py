"""Granite 3: Llama's layout with multipliers on embedding, residual, attention and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "GraniteForCausalLM"
DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "logits_scaling": 1.0,
}

parameters = llama.parameters


def read(config: ConfigFile) -> DecoderSpec:
    return replace(read_granite(config, "granite"), has_mlp_bias=config.flag("mlp_bias"))


def read_granite(config: ConfigFile, family: str) -> DecoderSpec:
    """The decoder without biases in its MLPs."""
    attention_bias = config.flag("attention_bias")
    return replace(
        llama.read_llama(config, family),
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        embedding_scale=config.number("embedding_multiplier"),
        residual_scale=config.number("residual_multiplier"),
        attention_scale=config.number("attention_multiplier"),
        logits_scale=1.0 / config.positive_number("logits_scaling"),
    )
