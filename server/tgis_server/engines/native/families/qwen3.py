"""Qwen3: no biases, a norm over each head of queries and keys, and an independent head size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.windows import read_qwen_windows
from tgis_server.engines.native.families import llama, qwen2
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Qwen3ForCausalLM"
DEFAULTS: dict[str, Any] = {**qwen2.DEFAULTS, "head_dim": 128}  # whatever hidden_size / num_attention_heads is

parameters = llama.parameters


def read(config: ConfigFile) -> DecoderSpec:
    spec = llama.read_llama(config, "qwen3")
    attention_bias = config.flag("attention_bias")
    return replace(
        spec,
        qk_norm="rms",
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        windows=read_qwen_windows(config, spec.num_layers),
    )
