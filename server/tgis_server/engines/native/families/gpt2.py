"""GPT-2: learned positions, LayerNorms, and a plain MLP. Linear layers are stored transposed, as (inputs, outputs)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, with_biases
from tgis_server.engines.native.config.length import read_table_length
from tgis_server.engines.native.parameters.layouts import (
    LayerRows,
    embedding,
    head,
    linear,
    norm,
    o_and_down,
    positions,
    stacked_qkv,
    up_layer,
)
from tgis_server.engines.native.parameters.pieces import Parameter, Stored
from tgis_server.engines.native.spec import DecoderSpec, LearnedPositions

ARCHITECTURE = "GPT2LMHeadModel"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_embd": 768,
    "n_inner": None,  # 4 * n_embd
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "tie_word_embeddings": True,
    "eos_token_id": 50256,
    "dtype": None,
    "torch_dtype": None,
}
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
KEYS = Keys("n_embd", "n_inner", "n_layer", "n_head", "", "", "layer_norm_epsilon", "activation_function")


def read(config: ConfigFile) -> DecoderSpec:
    return read_gpt2(config, "gpt2")


def read_gpt2(config: ConfigFile, family: str) -> DecoderSpec:
    config.refuse(("scale_attn_by_inverse_layer_idx", "add_cross_attention"))
    length = read_table_length(config, "n_positions")
    spec = with_biases(read_decoder(config, family, KEYS, LearnedPositions(length.num_tokens), length))
    return spec if config.flag("scale_attn_weights") else replace(spec, attention_scale=1.0)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    return parameters_as(spec, partial(stacked_qkv, is_transposed=True), is_transposed=True)


def parameters_as(
    spec: DecoderSpec, arrange: Callable[[str, DecoderSpec], list[LayerRows]], *, is_transposed: bool
) -> list[Parameter]:
    """
    Args:
        spec: the model.
        arrange: finds queries, keys and values in the layer of this name.
        is_transposed: whether linear layers are stored as (inputs, outputs).
    """
    hidden = spec.hidden_size
    stored = Stored(is_transposed=is_transposed)
    found = [
        *embedding(spec, "transformer.wte.weight"),
        *positions("transformer.wpe.weight", spec.length.num_tokens, hidden),
        *norm("final_norm", "transformer.ln_f", hidden, has_bias=True),
        *head(spec),
    ]
    for layer in range(spec.num_layers):
        theirs, ours = f"transformer.h.{layer}.", f"layers.{layer}."
        found += [
            *norm(ours + "attention_norm", theirs + "ln_1", hidden, has_bias=True),
            *norm(ours + "mlp_norm", theirs + "ln_2", hidden, has_bias=True),
            *linear(ours + "qkv", arrange(theirs + "attn.c_attn", spec), hidden, has_bias=True),
            *up_layer(spec, layer, theirs + "mlp.c_fc", stored),
            *o_and_down(spec, layer, theirs + "attn.c_proj", theirs + "mlp.c_proj", stored),
        ]
    return found
