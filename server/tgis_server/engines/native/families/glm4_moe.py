"""GLM-4.5: Llama's layout with partial rotation, and a mixture in the style of DeepSeek-V3."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import read_head_dim
from tgis_server.engines.native.config.mixture import read_grouped_mixture
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families import llama, qwen2_moe
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Glm4MoeForCausalLM"
DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "vocab_size": 151552,
    "intermediate_size": 10944,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "eos_token_id": None,
    "partial_rotary_factor": 0.5,
    "use_qk_norm": False,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1408,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
ALIASES = {"num_local_experts": "n_routed_experts"}


def read(config: ConfigFile) -> DecoderSpec:
    rope = read_rope(config, read_head_dim(config), may_be_partial=True)
    return replace(
        llama.read_llama(config, "glm4_moe", rope),
        qk_norm="rms" if config.flag("use_qk_norm") else None,
        has_qkv_bias=config.flag("attention_bias"),
        mixture=read_grouped_mixture(config),
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    return qwen2_moe.moe_parameters(spec, choice_bias="gate.e_score_correction_bias")
