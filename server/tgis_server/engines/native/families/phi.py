"""Phi-1, Phi-1.5 and Phi-2: attention and MLP in parallel after one norm, partial rotation, and a head with a bias."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim, with_biases
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.layouts import norm, o_and_down, up_layer
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "PhiForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value
    for key, value in llama.DEFAULTS.items()
    if key not in ("rms_norm_eps", "attention_bias", "mlp_bias", "layer_types")
} | {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu_new",
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
}
KEYS = Keys(norm_eps="layer_norm_eps")


def read(config: ConfigFile) -> DecoderSpec:
    rope = read_rope(config, read_head_dim(config, KEYS), may_be_partial=True)
    return replace(
        with_biases(read_decoder(config, "phi", KEYS, rope, read_length(config, rope))),
        residual="parallel",
        qk_norm="layer" if config.flag("qk_layernorm") else None,
        has_head_bias=True,
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    hidden = spec.hidden_size
    found = llama.outer_parameters(spec, "model.final_layernorm")
    for layer in range(spec.num_layers):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        found += [
            *llama.qk_norms(spec, layer, "layernorm"),
            *norm(ours + "attention_norm", theirs + "input_layernorm", hidden, has_bias=True),
            *llama.split_qkv(spec, layer),
            *up_layer(spec, layer, theirs + "mlp.fc1"),
            *o_and_down(spec, layer, theirs + "self_attn.dense", theirs + "mlp.fc2"),
        ]
    return found
