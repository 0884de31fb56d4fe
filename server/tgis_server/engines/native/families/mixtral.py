"""Mixtral: Mistral with a mixture of experts on every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.mixture import read_mixture
from tgis_server.engines.native.config.windows import read_uniform_window
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.layouts import router, separate_experts
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "MixtralForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value for key, value in llama.DEFAULTS.items() if key not in ("attention_bias", "mlp_bias")
} | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
ALIASES = {"num_experts": "num_local_experts"}


def read(config: ConfigFile) -> DecoderSpec:
    spec = llama.read_llama(config, "mixtral")
    mixture = read_mixture(config, "num_local_experts", intermediate_size="intermediate_size", is_normalized=True)
    return replace(spec, mixture=mixture, windows=read_uniform_window(config, spec.num_layers))


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        theirs = f"model.layers.{layer}.block_sparse_moe."
        found += [
            *llama.layer_norms(spec, layer),
            *llama.attention_layers(spec, layer),
            *router(spec, layer, theirs + "gate"),
            *separate_experts(spec, layer, theirs + "experts", ("w1", "w3", "w2")),
        ]
    return found
