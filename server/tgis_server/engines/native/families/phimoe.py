"""Phi-3.5-MoE: Mixtral's layout with LayerNorms, biases, and the router of SparseMixer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import read_head_dim
from tgis_server.engines.native.config.mixture import read_mixture
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.config.windows import read_uniform_window
from tgis_server.engines.native.families import llama, mixtral
from tgis_server.engines.native.spec import DecoderSpec, RopeSpec

ARCHITECTURE = "PhimoeForCausalLM"
DEFAULTS: dict[str, Any] = {
    **mixtral.DEFAULTS,
    "vocab_size": 32064,
    "intermediate_size": 6400,
    "attention_bias": False,
    "lm_head_bias": False,
    "num_local_experts": 16,
    "router_jitter_noise": 0.01,
}

parameters = mixtral.parameters


def read(config: ConfigFile) -> DecoderSpec:
    spec = llama.read_llama(config, "phimoe", read_scaled_rope(config))
    has_bias = config.flag("attention_bias")
    mixture = read_mixture(
        config,
        "num_local_experts",
        intermediate_size="intermediate_size",
        scoring="sparsemixer",
        jitter=config.number("router_jitter_noise"),
    )
    if mixture.num_chosen != 2:
        raise config.fail(f"num_experts_per_tok is {mixture.num_chosen}, but the router of this family chooses 2.")
    return replace(
        spec,
        norm="layer",
        has_norm_bias=True,
        has_qkv_bias=has_bias,
        has_o_bias=has_bias,
        has_head_bias=config.flag("lm_head_bias"),
        mixture=mixture,
        windows=read_uniform_window(config, spec.num_layers),
    )


def read_scaled_rope(config: ConfigFile) -> RopeSpec:
    """LongRoPE whose factor for cos and sin is in the config."""
    rope = read_rope(config, read_head_dim(config))
    if rope.kind == "default":
        return rope
    parameters = config.get("rope_scaling") or config.get("rope_parameters")
    short, long = (config.check_positive(key, parameters.get(key)) for key in ("short_mscale", "long_mscale"))
    if rope.kind != "longrope" or short != long:
        raise config.fail(
            f"rope type {rope.kind} with short_mscale {short:g} and long_mscale {long:g} is not supported for this "
            "family: only longrope with equal values is."
        )
    return replace(rope, attention_factor=short)
