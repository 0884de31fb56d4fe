"""OLMoE: many small experts, and norms over all heads of queries and of keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.mixture import read_mixture
from tgis_server.engines.native.families import llama, olmo2, qwen2_moe
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "OlmoeForCausalLM"
DEFAULTS: dict[str, Any] = {
    **olmo2.DEFAULTS,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "clip_qkv": None,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
}
ALIASES = {"num_local_experts": "num_experts"}

parameters = qwen2_moe.moe_parameters


def read(config: ConfigFile) -> DecoderSpec:
    attention_bias = config.flag("attention_bias")
    return replace(
        llama.read_llama(config, "olmoe"),
        qk_norm="rms",
        is_qk_norm_joint=True,
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        qkv_limit=config.optional_positive_number("clip_qkv") or 0.0,
        mixture=read_mixture(
            config, intermediate_size="intermediate_size", is_normalized=config.flag("norm_topk_prob")
        ),
    )
