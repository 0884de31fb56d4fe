"""Qwen2 and Qwen2.5: biases on queries, keys and values; an optional sliding window on the upper layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.windows import read_qwen_windows
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Qwen2ForCausalLM"
DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "eos_token_id": None,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

parameters = llama.parameters


def read(config: ConfigFile) -> DecoderSpec:
    spec = llama.read_llama(config, "qwen2")
    return replace(spec, has_qkv_bias=True, windows=read_qwen_windows(config, spec.num_layers))
