"""BLOOM: ALiBi, a norm behind the embedding, and queries, keys and values of each head stored together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.families.common import Keys, alibi_slopes, read_any, with_biases
from tgis_server.engines.native.families.config_file import ConfigFile
from tgis_server.engines.native.families.length import read_length
from tgis_server.engines.native.families.names import (
    Part,
    embedding,
    head,
    linear,
    norm,
    o_and_down,
    qkv_by_kv_head,
)
from tgis_server.engines.native.parameters import Parameter, Split
from tgis_server.engines.native.spec import Alibi, DecoderSpec

ARCHITECTURE = "BloomForCausalLM"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 250880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,  # what the published models were trained with; their class has no limit
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "dtype": None,
    "torch_dtype": None,
}
ALIASES = {"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
KEYS = Keys("hidden_size", "", "n_layer", "n_head", "", "", "layer_norm_epsilon", "")


def read(config: ConfigFile) -> DecoderSpec:
    config.refuse(("apply_residual_connection_post_layernorm",))
    spec = with_biases(read_any(config, "bloom", KEYS, None, read_length(config, None)))
    return replace(
        spec,
        positions=Alibi(alibi_slopes(spec.num_heads)),
        has_embedding_norm=True,
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    found = [
        *embedding(spec, "transformer.word_embeddings.weight"),
        *norm("embedding_norm", "transformer.word_embeddings_layernorm", hidden, has_bias=True),
        *norm("final_norm", "transformer.ln_f", hidden, has_bias=True),
        *head(spec),
    ]
    for layer in range(spec.num_layers):
        theirs, ours = f"transformer.h.{layer}.", f"layers.{layer}."
        qkv = qkv_by_kv_head(theirs + "self_attention.query_key_value", spec)
        found += [
            *norm(ours + "attention_norm", theirs + "input_layernorm", hidden, has_bias=True),
            *norm(ours + "mlp_norm", theirs + "post_attention_layernorm", hidden, has_bias=True),
            *linear(ours + "qkv", qkv, hidden, has_bias=True),
            *linear(ours + "up", [Part(theirs + "mlp.dense_h_to_4h", inner, Split.ROWS)], hidden, has_bias=True),
            *o_and_down(spec, layer, theirs + "self_attention.dense", theirs + "mlp.dense_4h_to_h"),
        ]
    return found
