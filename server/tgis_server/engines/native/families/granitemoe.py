"""Granite 3 with experts: Granite's multipliers, and experts stacked in one tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.mixture import read_mixture
from tgis_server.engines.native.families import granite, llama
from tgis_server.engines.native.parameters.layouts import router, stacked_experts
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "GraniteMoeForCausalLM"
DEFAULTS: dict[str, Any] = {key: value for key, value in granite.DEFAULTS.items() if key != "mlp_bias"} | {
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def read(config: ConfigFile) -> DecoderSpec:
    mixture = read_mixture(config, "num_local_experts", intermediate_size="intermediate_size", is_normalized=True)
    return replace(granite.read_granite(config, "granitemoe"), mixture=mixture)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        theirs = f"model.layers.{layer}.block_sparse_moe."
        found += [
            *llama.layer_norms(spec, layer),
            *llama.attention_layers(spec, layer),
            *router(spec, layer, theirs + "router.layer"),
            *stacked_experts(spec, layer, theirs + "input_linear.weight", theirs + "output_linear.weight"),
        ]
    return found
