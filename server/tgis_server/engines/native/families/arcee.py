"""Arcee (AFM): Llama's layout with a plain MLP and a squared ReLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.layouts import o_and_down, up_layer
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "ArceeForCausalLM"
DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "hidden_size": 2560,
    "intermediate_size": 18432,
    "hidden_act": "relu2",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 128001,
}


def read(config: ConfigFile) -> DecoderSpec:
    return replace(llama.read(config), family="arcee", is_mlp_gated=False)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        theirs = f"model.layers.{layer}."
        found += [
            *llama.layer_norms(spec, layer),
            *llama.split_qkv(spec, layer),
            *up_layer(spec, layer, theirs + "mlp.up_proj"),
            *o_and_down(spec, layer, theirs + "self_attn.o_proj", theirs + "mlp.down_proj"),
        ]
    return found
