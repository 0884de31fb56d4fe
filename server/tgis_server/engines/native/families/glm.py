"""GLM-4 of 2024 (glm-4-9b): neighbouring dimensions of half of each head rotate, and gate and up are fused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import read_head_dim
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.layouts import fused_gate_up, o_and_down
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "GlmForCausalLM"
DEFAULTS: dict[str, Any] = {key: value for key, value in llama.DEFAULTS.items() if key != "mlp_bias"} | {
    "vocab_size": 151552,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-7,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "eos_token_id": [151329, 151336, 151338],
}


def read(config: ConfigFile) -> DecoderSpec:
    return read_glm(config, "glm")


def read_glm(config: ConfigFile, family: str) -> DecoderSpec:
    config = config.without_null("eos_token_id")
    rope = replace(read_rope(config, read_head_dim(config), may_be_partial=True), is_paired=True)
    return replace(llama.read_llama(config, family, rope), has_qkv_bias=config.flag("attention_bias"))


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        found += [*llama.layer_norms(spec, layer), *linear_parameters(spec, layer)]
    return found


def linear_parameters(spec: DecoderSpec, layer: int) -> list[Parameter]:
    theirs = f"model.layers.{layer}."
    return [
        *llama.split_qkv(spec, layer),
        *fused_gate_up(spec, layer, theirs + "mlp.gate_up_proj"),
        *o_and_down(spec, layer, theirs + "self_attn.o_proj", theirs + "mlp.down_proj"),
    ]
