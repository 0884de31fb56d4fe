"""Qwen3: no biases, a norm over each head of queries and keys, and a head size of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.families.common import QWEN_DEFAULTS, read_decoder, read_qwen_windows
from tgis_server.engines.native.families.config_file import ConfigFile
from tgis_server.engines.native.families.names import split_parameters as parameters
from tgis_server.engines.native.spec import DecoderSpec

__all__ = ["ARCHITECTURE", "DEFAULTS", "parameters", "read"]

ARCHITECTURE = "Qwen3ForCausalLM"
DEFAULTS: dict[str, Any] = {**QWEN_DEFAULTS, "head_dim": 128}  # whatever hidden_size / num_attention_heads is


def read(config: ConfigFile) -> DecoderSpec:
    spec = read_decoder(config, "qwen3")
    attention_bias = config.flag("attention_bias")
    return replace(
        spec,
        qk_norm="rms",
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        windows=read_qwen_windows(config, spec.num_layers),
    )
