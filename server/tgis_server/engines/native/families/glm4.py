"""GLM-4 of 2025 (GLM-4-0414, GLM-Z1): GLM with two more norms, after attention and after the MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.families import glm, llama
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Glm4ForCausalLM"
DEFAULTS: dict[str, Any] = glm.DEFAULTS
NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_self_attn_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_mlp_layernorm",
}


def read(config: ConfigFile) -> DecoderSpec:
    return replace(glm.read_glm(config, "glm4"), residual="sandwich")


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        found += [*llama.layer_norms(spec, layer, NORMS), *glm.linear_parameters(spec, layer)]
    return found
