"""BLOOM: ALiBi, a norm after the embedding, and queries, keys and values stored by head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, with_biases
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.parameters.layouts import (
    embedding,
    grouped_qkv,
    head,
    linear,
    norm,
    o_and_down,
    up_layer,
)
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import Alibi, DecoderSpec

ARCHITECTURE = "BloomForCausalLM"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 250880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 2048,  # as the published models were trained; the class has no limit
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "dtype": None,
    "torch_dtype": None,
}
ALIASES = {"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
KEYS = Keys("hidden_size", "", "n_layer", "n_head", "", "", "layer_norm_epsilon", "")


def read(config: ConfigFile) -> DecoderSpec:
    config.refuse(("apply_residual_connection_post_layernorm",))
    spec = with_biases(read_decoder(config, "bloom", KEYS, None, read_length(config, None)))
    return replace(
        spec,
        positions=Alibi(alibi_slopes(spec.num_heads)),
        has_embedding_norm=True,
    )


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """The first n powers of 2^(-8/n) if n is a power of two.

    Otherwise the slopes for the next lower power of two, and then every other slope for twice that number of heads.
    """
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-4 * i / power) for i in range(1, 2 * power, 2)]
    return tuple((slopes + between)[:num_heads])


def parameters(spec: DecoderSpec) -> list[Parameter]:
    hidden = spec.hidden_size
    found = [
        *embedding(spec, "transformer.word_embeddings.weight"),
        *norm("embedding_norm", "transformer.word_embeddings_layernorm", hidden, has_bias=True),
        *norm("final_norm", "transformer.ln_f", hidden, has_bias=True),
        *head(spec),
    ]
    for layer in range(spec.num_layers):
        theirs, ours = f"transformer.h.{layer}.", f"layers.{layer}."
        qkv = grouped_qkv(theirs + "self_attention.query_key_value", spec)
        found += [
            *norm(ours + "attention_norm", theirs + "input_layernorm", hidden, has_bias=True),
            *norm(ours + "mlp_norm", theirs + "post_attention_layernorm", hidden, has_bias=True),
            *linear(ours + "qkv", qkv, hidden, has_bias=True),
            *up_layer(spec, layer, theirs + "mlp.dense_h_to_4h"),
            *o_and_down(spec, layer, theirs + "self_attention.dense", theirs + "mlp.dense_4h_to_h"),
        ]
    return found
