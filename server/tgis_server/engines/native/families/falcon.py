"""Falcon: the decoders of 7B (one norm, one KV head), 40B (two norms, grouped heads) and RW (ALiBi, serial)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim, with_biases
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families.bloom import alibi_slopes
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
from tgis_server.engines.native.spec import Alibi, DecoderSpec, Positions, Residual

ARCHITECTURE = "FalconForCausalLM"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "ffn_hidden_size": None,  # 4 * hidden_size
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_kv_heads": None,  # num_attention_heads
    "num_ln_in_parallel_attn": None,  # 2 in the new decoder, otherwise 1
    "layer_norm_epsilon": 1e-5,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "activation": "gelu",
    "max_position_embeddings": 2048,
    "original_max_position_embeddings": None,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": 1.0,
    "tie_word_embeddings": True,
    "eos_token_id": 11,
    "dtype": None,
    "torch_dtype": None,
}
ALIASES = {"n_embed": "hidden_size"}
KEYS = Keys(
    intermediate_size="ffn_hidden_size",
    num_kv_heads="num_kv_heads",
    head_dim="",
    norm_eps="layer_norm_epsilon",
    activation="activation",
)


def read(config: ConfigFile) -> DecoderSpec:
    is_new, has_bias = config.flag("new_decoder_architecture"), config.flag("bias")
    head_dim = read_head_dim(config, KEYS)
    positions: Positions
    if config.flag("alibi"):
        # The class rounds slopes and products to bfloat16; here they are exact.
        slopes = alibi_slopes(config.integer("num_attention_heads"))
        positions = Alibi(tuple(slope * head_dim**-0.5 for slope in slopes))  # biases are scaled as scores are
        length = read_length(config, None)
    else:
        positions = read_rope(config, head_dim)
        length = read_length(config, positions)
    spec = read_decoder(config, "falcon", KEYS, positions, length)
    residual: Residual
    if is_new:
        norms = config.optional_integer("num_ln_in_parallel_attn") or 2
        residual = "parallel_two_norms" if norms == 2 else "parallel"
    else:
        residual = "parallel" if config.flag("parallel_attn") else "serial"
    return replace(
        with_biases(spec),
        num_kv_heads=1 if config.flag("multi_query") and not is_new else spec.num_kv_heads,
        residual=residual,
        has_qkv_bias=has_bias,
        has_o_bias=has_bias,
        has_mlp_bias=has_bias,
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    hidden = spec.hidden_size
    found = [
        *embedding(spec, "transformer.word_embeddings.weight"),
        *norm("final_norm", "transformer.ln_f", hidden, has_bias=True),
        *head(spec),
    ]
    norms = {
        "serial": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
        "parallel": {"attention_norm": "input_layernorm"},
        "parallel_two_norms": {"attention_norm": "ln_attn", "mlp_norm": "ln_mlp"},
    }[spec.residual]
    for layer in range(spec.num_layers):
        theirs, ours = f"transformer.h.{layer}.", f"layers.{layer}."
        for name, their_name in norms.items():
            found += norm(ours + name, theirs + their_name, hidden, has_bias=True)
        qkv = grouped_qkv(theirs + "self_attention.query_key_value", spec)  # a single group is all queries, key, value
        found += [
            *linear(ours + "qkv", qkv, hidden, has_bias=spec.has_qkv_bias),
            *up_layer(spec, layer, theirs + "mlp.dense_h_to_4h"),
            *o_and_down(spec, layer, theirs + "self_attention.dense", theirs + "mlp.dense_4h_to_h"),
        ]
    return found
