"""MPT: ALiBi, LayerNorms and linear layers without biases, and in some models limited queries, keys and values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile, show
from tgis_server.engines.native.config.decoder import Keys, read_decoder
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.families.bloom import alibi_slopes
from tgis_server.engines.native.parameters.layouts import (
    embedding,
    head,
    linear,
    norm,
    o_and_down,
    stacked_qkv,
    up_layer,
)
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import Alibi, DecoderSpec

ARCHITECTURE = "MptForCausalLM"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50368,
    "d_model": 2048,
    "n_layers": 24,
    "n_heads": 16,
    "max_seq_len": 2048,
    "layer_norm_epsilon": 1e-5,
    "attn_config": None,
    "tie_word_embeddings": True,
    "eos_token_id": None,
    "dtype": None,
    "torch_dtype": None,
}
ALIASES = {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
KEYS = Keys("d_model", "", "n_layers", "n_heads", "", "", "layer_norm_epsilon", "")
# What the model's class computes, whatever these keys of attn_config say.
FIXED = {"attn_type": "multihead_attention", "alibi": True, "alibi_bias_max": 8, "prefix_lm": False, "qk_ln": False}


def read(config: ConfigFile) -> DecoderSpec:
    config.refuse(("logit_scale",))
    attention = config.get("attn_config") or {}
    if not isinstance(attention, dict):
        raise config.fail(f"attn_config is {show(attention)}, but must be an object.")
    for key, value in FIXED.items():
        if attention.get(key, value) != value:
            raise config.fail(f"attn_config.{key} = {show(attention[key])} is not supported by the native engine.")
    spec = read_decoder(config, "mpt", KEYS, None, read_length(config, None, "max_seq_len"))

    def number(key: str, default: float) -> float:
        value = attention.get(key)
        return default if value is None else config.check_positive(f"attn_config.{key}", value)

    return replace(
        spec,
        norm="layer",
        is_mlp_gated=False,
        activation="gelu",
        positions=Alibi(alibi_slopes(spec.num_heads)),
        qkv_limit=number("clip_qkv", 0.0),
        attention_scale=number("softmax_scale", spec.attention_scale),
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    hidden = spec.hidden_size
    found = [
        *embedding(spec, "transformer.wte.weight"),
        *norm("final_norm", "transformer.norm_f", hidden),
        *head(spec),
    ]
    for layer in range(spec.num_layers):
        theirs, ours = f"transformer.blocks.{layer}.", f"layers.{layer}."
        found += [
            *norm(ours + "attention_norm", theirs + "norm_1", hidden),
            *norm(ours + "mlp_norm", theirs + "norm_2", hidden),
            *linear(ours + "qkv", stacked_qkv(theirs + "attn.Wqkv", spec), hidden, has_bias=False),
            *up_layer(spec, layer, theirs + "ffn.up_proj"),
            *o_and_down(spec, layer, theirs + "attn.out_proj", theirs + "ffn.down_proj"),
        ]
    return found
