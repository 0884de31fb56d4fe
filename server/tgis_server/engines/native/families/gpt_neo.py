"""GPT-Neo: GPT-2's decoder with attention that is not scaled, and windows on the layers that it calls local."""

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

ARCHITECTURE = "GPTNeoForCausalLM"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "hidden_size": 2048,
    "intermediate_size": None,  # 4 * hidden_size
    "num_layers": 24,
    "num_heads": 16,
    "attention_types": [[["global", "local"], 12]],  # [[kinds of layers, how often], ...]
    "window_size": 256,
    "max_position_embeddings": 2048,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
    "eos_token_id": 50256,
    "dtype": None,
    "torch_dtype": None,
}
ALIASES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
KEYS = Keys(
    num_layers="num_layers",
    num_heads="num_heads",
    num_kv_heads="",
    head_dim="",
    norm_eps="layer_norm_epsilon",
    activation="activation_function",
)


def read(config: ConfigFile) -> DecoderSpec:
    length = read_table_length(config, "max_position_embeddings")
    spec = with_biases(read_decoder(config, "gpt_neo", KEYS, LearnedPositions(length.num_tokens), length))
    return replace(spec, has_qkv_bias=False, attention_scale=1.0, windows=read_windows(config, spec.num_layers))


def read_windows(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    window, types = config.integer("window_size"), config.get("attention_types")
    try:
        kinds = [kind for layers, count in types for kind in layers * count]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != num_layers or not set(kinds) <= {"global", "local"}:
        raise config.fail(f"attention_types {show(types)} does not name global or local for {num_layers} layers.")
    return tuple(window if kind == "local" else None for kind in kinds)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    hidden = spec.hidden_size
    found = [
        *embedding(spec, "transformer.wte.weight"),
        *positions("transformer.wpe.weight", spec.length.num_tokens, hidden),
        *norm("final_norm", "transformer.ln_f", hidden, has_bias=True),
        *head(spec),
    ]
    for layer in range(spec.num_layers):
        theirs, ours = f"transformer.h.{layer}.", f"layers.{layer}."
        attention = theirs + "attn.attention."
        found += [
            *norm(ours + "attention_norm", theirs + "ln_1", hidden, has_bias=True),
            *norm(ours + "mlp_norm", theirs + "ln_2", hidden, has_bias=True),
            *linear(ours + "qkv", separate_qkv(attention, spec), hidden, has_bias=False),
            *up_layer(spec, layer, theirs + "mlp.c_fc"),
            *o_and_down(spec, layer, attention + "out_proj", theirs + "mlp.c_proj"),
        ]
    return found
