"""gpt-oss in bfloat16: attention sinks, windows on alternate layers, and experts with limited activations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.mixture import read_mixture
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.config.windows import LAYER_TYPES, windows_of_types
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.layouts import router, sinks, stacked_experts
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "GptOssForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value for key, value in llama.DEFAULTS.items() if key not in ("hidden_act", "mlp_bias")
} | {
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "eos_token_id": None,
    "attention_bias": True,
    "rope_theta": 150000.0,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}
ALIASES = {"num_experts": "num_local_experts"}
KEYS = Keys(activation="")


def read(config: ConfigFile) -> DecoderSpec:
    rope = read_rope(config, read_head_dim(config))
    spec = read_decoder(config, "gpt_oss", KEYS, rope, read_length(config, rope))
    for key in ("swiglu_alpha", "swiglu_limit"):
        if config.number(key) != DEFAULTS[key]:
            raise config.fail(f"{key} = {config.number(key):g} is not supported by the native engine.")
    types = config.names("layer_types") or [LAYER_TYPES[layer % 2 == 0] for layer in range(spec.num_layers)]
    has_bias = config.flag("attention_bias")
    return replace(
        spec,
        activation="swigluoai",
        has_qkv_bias=has_bias,
        has_o_bias=has_bias,
        has_sinks=True,
        mixture=read_mixture(
            config,
            "num_local_experts",
            intermediate_size="intermediate_size",
            is_normalized=True,
            has_router_bias=True,
            has_bias=True,
        ),
        windows=windows_of_types(config, types, config.optional_integer("sliding_window"), spec.num_layers),
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        theirs = f"model.layers.{layer}."
        experts = theirs + "mlp.experts."
        found += [
            *llama.layer_norms(spec, layer),
            *llama.attention_layers(spec, layer),
            *sinks(spec, layer, theirs + "self_attn.sinks"),
            *router(spec, layer, theirs + "mlp.router"),
            *stacked_experts(
                spec, layer, experts + "gate_up_proj", experts + "down_proj", is_transposed=True, is_interleaved=True
            ),
        ]
    return found
