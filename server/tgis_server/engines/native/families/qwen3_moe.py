"""Qwen3-MoE: Qwen3 with many small experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.mixture import read_qwen_mixture
from tgis_server.engines.native.config.windows import read_uniform_window
from tgis_server.engines.native.families import llama, qwen2_moe
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Qwen3MoeForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value
    for key, value in qwen2_moe.DEFAULTS.items()
    if key not in ("qkv_bias", "shared_expert_intermediate_size", "max_window_layers")
} | {
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "attention_bias": False,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
}
ALIASES = {"num_local_experts": "num_experts"}

parameters = qwen2_moe.moe_parameters


def read(config: ConfigFile) -> DecoderSpec:
    spec = llama.read_llama(config, "qwen3_moe")
    attention_bias = config.flag("attention_bias")
    has_windows = config.flag("use_sliding_window")
    return replace(
        spec,
        qk_norm="rms",
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        mixture=read_qwen_mixture(config),
        windows=read_uniform_window(config, spec.num_layers) if has_windows else spec.windows,
    )
