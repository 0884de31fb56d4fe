"""ERNIE 4.5 with experts: neighbouring elements of a head rotate together, and a bias decides the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import read_head_dim
from tgis_server.engines.native.config.mixture import read_mixture
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families import llama, qwen2_moe
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec, Mixture

ARCHITECTURE = "Ernie4_5_MoeForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value for key, value in llama.DEFAULTS.items() if key not in ("attention_bias", "mlp_bias")
} | {
    "vocab_size": 103424,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": False,
    "moe_num_experts": 64,
    "moe_k": 6,
    "moe_intermediate_size": 1536,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,  # the last layer
    "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
}
ALIASES = {"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"}


def read(config: ConfigFile) -> DecoderSpec:
    rope = replace(read_rope(config, read_head_dim(config)), is_paired=True)
    has_bias = config.flag("use_bias")
    return replace(
        llama.read_llama(config, "ernie4_5_moe", rope),
        has_qkv_bias=has_bias,
        has_o_bias=has_bias,
        has_mlp_bias=has_bias,
        has_head_bias=has_bias,
        mixture=read_experts(config),
    )


def read_experts(config: ConfigFile) -> Mixture:
    num_layers, interval = config.integer("num_hidden_layers"), config.integer("moe_layer_interval")
    first = config.integer("moe_layer_start_index", at_least=0)
    last = config.integer("moe_layer_end_index", at_least=-1)
    last = num_layers - 1 if last == -1 else last
    mixture = read_mixture(
        config,
        "moe_num_experts",
        "moe_k",
        is_normalized=True,
        has_choice_bias=True,
        layers=tuple(first <= i <= last and (i + 1) % interval == 0 for i in range(num_layers)),
    )
    smallest = config.number("moe_norm_min")  # of the sum that weights are divided by
    if smallest > 1e-6:
        raise config.fail(f"moe_norm_min = {smallest:g} is not supported by the native engine.")
    shared = config.integer("moe_num_shared_experts", at_least=0)
    return replace(mixture, shared_size=mixture.intermediate_size * shared)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    return qwen2_moe.moe_parameters(spec, choice_bias="moe_statics.e_score_correction_bias", is_stacked=True)
