"""dots.llm1: Qwen3's attention, and a mixture in the style of DeepSeek-V3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.mixture import read_grouped_mixture
from tgis_server.engines.native.config.windows import read_windows_from
from tgis_server.engines.native.families import glm4_moe, llama
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Dots1ForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value for key, value in glm4_moe.DEFAULTS.items() if key not in ("partial_rotary_factor", "use_qk_norm")
} | {
    "vocab_size": 152064,
    "hidden_size": 4608,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "partial_rotary_factor": 1.0,
    "sliding_window": 4096,
    "max_window_layers": 62,
    "n_routed_experts": None,
    "n_shared_experts": None,
    "num_experts_per_tok": None,
    "norm_topk_prob": False,
    "first_k_dense_replace": 0,
}
ALIASES = glm4_moe.ALIASES

parameters = glm4_moe.parameters


def read(config: ConfigFile) -> DecoderSpec:
    spec = llama.read_llama(config, "dots1")
    attention_bias = config.flag("attention_bias")
    return replace(
        spec,
        qk_norm="rms",
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        mixture=read_grouped_mixture(config),
        windows=read_windows_from(config, spec.num_layers),
    )
