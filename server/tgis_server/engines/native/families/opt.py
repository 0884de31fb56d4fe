"""OPT and Galactica: learned positions after two unused rows, LayerNorms before attention and MLP, a plain MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile, show
from tgis_server.engines.native.config.decoder import Keys, read_decoder, with_biases
from tgis_server.engines.native.config.length import read_table_length
from tgis_server.engines.native.parameters.layouts import (
    embedding,
    head,
    linear,
    norm,
    o_and_down,
    positions,
    separate_qkv,
    up_layer,
)
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec, LearnedPositions

ARCHITECTURE = "OPTForCausalLM"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
    "activation_function": "relu",
    "enable_bias": True,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "dtype": None,
    "torch_dtype": None,
}
KEYS = Keys(intermediate_size="ffn_dim", num_kv_heads="", head_dim="", norm_eps="", activation="activation_function")
UNUSED_POSITIONS = 2


def read(config: ConfigFile) -> DecoderSpec:
    config.refuse(("_remove_final_layer_norm",))
    config.refuse_false(("do_layer_norm_before", "layer_norm_elementwise_affine"))
    length = read_table_length(config, "max_position_embeddings")
    spec = with_biases(read_decoder(config, "opt", KEYS, LearnedPositions(length.num_tokens), length))
    projected = config.stated("word_embed_proj_dim")
    if projected not in (None, spec.hidden_size):
        raise config.fail(f"word_embed_proj_dim {show(projected)} is not supported: it must equal hidden_size.")
    has_bias = config.flag("enable_bias")
    return replace(spec, has_qkv_bias=has_bias, has_o_bias=has_bias, has_mlp_bias=has_bias)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    hidden = spec.hidden_size
    outer = "model.decoder."
    found = [
        *embedding(spec, outer + "embed_tokens.weight"),
        *positions(outer + "embed_positions.weight", spec.length.num_tokens, hidden, offset=UNUSED_POSITIONS),
        *norm("final_norm", outer + "final_layer_norm", hidden, has_bias=True),
        *head(spec),
    ]
    for layer in range(spec.num_layers):
        theirs, ours = f"{outer}layers.{layer}.", f"layers.{layer}."
        qkv = separate_qkv(theirs + "self_attn.", spec)
        found += [
            *norm(ours + "attention_norm", theirs + "self_attn_layer_norm", hidden, has_bias=True),
            *norm(ours + "mlp_norm", theirs + "final_layer_norm", hidden, has_bias=True),
            *linear(ours + "qkv", qkv, hidden, has_bias=spec.has_qkv_bias),
            *up_layer(spec, layer, theirs + "fc1"),
            *o_and_down(spec, layer, theirs + "self_attn.out_proj", theirs + "fc2"),
        ]
    return found
