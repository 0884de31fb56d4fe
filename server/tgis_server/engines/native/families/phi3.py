"""Phi-3, Phi-3.5 and Phi-4-mini: fused projections, LongRoPE, rotation of a part of each head.

``qkv_proj`` holds queries, keys and values one after the other, ``gate_up_proj`` gate and up: each becomes pieces, so
that a shard reads only its heads of each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.families.common import DEFAULTS as LLAMA_DEFAULTS
from tgis_server.engines.native.families.common import read_decoder, read_head_dim, read_uniform_window
from tgis_server.engines.native.families.config_file import ConfigFile
from tgis_server.engines.native.families.names import (
    in_a_row,
    layer_norms,
    linear,
    o_and_down,
    outer_parameters,
    qkv_in_a_row,
)
from tgis_server.engines.native.families.rope import read_rope
from tgis_server.engines.native.parameters import Parameter, Split
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Phi3ForCausalLM"
ROPE_ALIASES = {"su": "longrope", "yarn": "longrope"}  # names in the first published configs
DEFAULTS: dict[str, Any] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32000,
    "sliding_window": None,
}


def read(config: ConfigFile) -> DecoderSpec:
    rope = read_rope(config, read_head_dim(config), aliases=ROPE_ALIASES, may_be_partial=True)
    if rope.kind not in ("default", "longrope"):
        raise config.fail(f"rope type {rope.kind!r} is not supported for this family; supported are default, longrope.")
    spec = read_decoder(config, "phi3", rope)
    return replace(spec, windows=read_uniform_window(config, spec.num_layers))


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = outer_parameters(spec)
    gate_up = [(spec.intermediate_size, Split.ROWS)] * 2
    for layer in range(spec.num_layers):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        found += [
            *layer_norms(spec, layer),
            *linear(ours + "qkv", qkv_in_a_row(theirs + "self_attn.qkv_proj", spec), spec.hidden_size, has_bias=False),
            *linear(ours + "gate_up", in_a_row(theirs + "mlp.gate_up_proj", gate_up), spec.hidden_size, has_bias=False),
            *o_and_down(spec, layer, theirs + "self_attn.o_proj", theirs + "mlp.down_proj"),
        ]
    return found
