"""Phi-3, Phi-3.5 and Phi-4-mini: fused projections, LongRoPE, and partial rotation of each head.

``qkv_proj`` stacks queries, keys and values, and ``gate_up_proj`` stacks gate and up. Each part becomes a piece, so
that a shard reads only its own rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import read_head_dim
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.config.windows import read_uniform_window
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.layouts import fused_gate_up, linear, o_and_down, stacked_qkv
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Phi3ForCausalLM"
ROPE_ALIASES = {"su": "longrope", "yarn": "longrope"}  # names in the first published configs
DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
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
        raise config.fail(f"rope type {rope.kind!r} is not supported for this family; use default or longrope.")
    spec = llama.read_llama(config, "phi3", rope)
    return replace(spec, windows=read_uniform_window(config, spec.num_layers))


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        found += [
            *llama.layer_norms(spec, layer),
            *linear(ours + "qkv", stacked_qkv(theirs + "self_attn.qkv_proj", spec), spec.hidden_size, has_bias=False),
            *fused_gate_up(spec, layer, theirs + "mlp.gate_up_proj"),
            *o_and_down(spec, layer, theirs + "self_attn.o_proj", theirs + "mlp.down_proj"),
        ]
    return found
