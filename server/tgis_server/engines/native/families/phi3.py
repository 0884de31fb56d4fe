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
from tgis_server.engines.native.families.names import layer_norms, linear, outer_parameters
from tgis_server.engines.native.families.rope import read_rope
from tgis_server.engines.native.parameters import Parameter, Piece, Split
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
    hidden, inner = spec.hidden_size, spec.intermediate_size
    query_rows, kv_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    for layer in range(spec.num_layers):
        theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
        qkv, gate_up = theirs + "self_attn.qkv_proj.weight", theirs + "mlp.gate_up_proj.weight"
        qkv_rows = query_rows + 2 * kv_rows
        found += [
            *layer_norms(spec, layer),
            Parameter(
                ours + "qkv",
                (
                    Piece(qkv, query_rows, hidden, Split.ROWS, 0, qkv_rows),
                    Piece(qkv, kv_rows, hidden, Split.KV_HEADS, query_rows, qkv_rows),
                    Piece(qkv, kv_rows, hidden, Split.KV_HEADS, query_rows + kv_rows, qkv_rows),
                ),
            ),
            Parameter(
                ours + "gate_up",
                (
                    Piece(gate_up, inner, hidden, Split.ROWS, 0, 2 * inner),
                    Piece(gate_up, inner, hidden, Split.ROWS, inner, 2 * inner),
                ),
            ),
            *linear(
                ours + "o",
                [(theirs + "self_attn.o_proj", hidden, Split.COLUMNS)],
                query_rows,
                Split.FIRST,
                has_bias=False,
            ),
            *linear(
                ours + "down", [(theirs + "mlp.down_proj", hidden, Split.COLUMNS)], inner, Split.FIRST, has_bias=False
            ),
        ]
    return found
