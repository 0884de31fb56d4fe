"""GPT-NeoX and Pythia: attention and MLP in parallel, partial rotation, and queries, keys and values stored by head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim, with_biases
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
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
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "GPTNeoXForCausalLM"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "head_dim": None,  # hidden_size / num_attention_heads
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "attention_bias": True,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "original_max_position_embeddings": None,
    "dtype": None,
    "torch_dtype": None,
}
KEYS = Keys(num_kv_heads="", norm_eps="layer_norm_eps")


def read(config: ConfigFile) -> DecoderSpec:
    head_dim, rope_keys = read_head_dim(config, KEYS), ("rotary_pct", "rotary_emb_base")
    rope = read_rope(config, head_dim, may_be_partial=True, partial_key=rope_keys[0], theta_key=rope_keys[1])
    attention_bias = config.flag("attention_bias")
    return replace(
        with_biases(read_decoder(config, "gpt_neox", KEYS, rope, read_length(config, rope))),
        residual="parallel_two_norms" if config.flag("use_parallel_residual") else "serial",
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    hidden = spec.hidden_size
    found = [
        *embedding(spec, "gpt_neox.embed_in.weight"),
        *norm("final_norm", "gpt_neox.final_layer_norm", hidden, has_bias=True),
        *head(spec, "embed_out"),
    ]
    for layer in range(spec.num_layers):
        theirs, ours = f"gpt_neox.layers.{layer}.", f"layers.{layer}."
        qkv = grouped_qkv(theirs + "attention.query_key_value", spec)
        found += [
            *norm(ours + "attention_norm", theirs + "input_layernorm", hidden, has_bias=True),
            *norm(ours + "mlp_norm", theirs + "post_attention_layernorm", hidden, has_bias=True),
            *linear(ours + "qkv", qkv, hidden, has_bias=spec.has_qkv_bias),
            *up_layer(spec, layer, theirs + "mlp.dense_h_to_4h"),
            *o_and_down(spec, layer, theirs + "attention.dense", theirs + "mlp.dense_4h_to_h"),
        ]
    return found
