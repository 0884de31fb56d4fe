"""Gemma 2: norms before and after attention and MLP; soft caps on scores and logits; windows on alternate layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.config.windows import LAYER_TYPES, windows_of_types
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Gemma2ForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value for key, value in llama.DEFAULTS.items() if key not in ("hidden_act", "mlp_bias")
} | {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,  # null: no cap
    "attn_logit_softcapping": 50.0,
}
KEYS = Keys(activation="hidden_activation")
NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def read(config: ConfigFile) -> DecoderSpec:
    rope = read_rope(config, read_head_dim(config, KEYS))
    return read_gemma(config, read_decoder(config, "gemma2", KEYS, rope, read_length(config, rope)))


def read_gemma(config: ConfigFile, spec: DecoderSpec) -> DecoderSpec:
    """What the second and the third generation have in common."""
    config.refuse(("use_bidirectional_attention",))
    attention_bias = config.flag("attention_bias")
    return replace(
        spec,
        norm="rms_plus_one",
        residual="sandwich",
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        embedding_scale=spec.hidden_size**0.5,
        is_embedding_scale_rounded=True,
        attention_scale=config.positive_number("query_pre_attn_scalar") ** -0.5,
        attention_cap=config.optional_positive_number("attn_logit_softcapping") or 0.0,
        logits_cap=config.optional_positive_number("final_logit_softcapping") or 0.0,
        windows=read_windows(config, spec.num_layers),
    )


def read_windows(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """``sliding_window`` on the layers that ``layer_types`` calls sliding; by default, on layers 0, 2, 4 and so on."""
    window, types = config.optional_integer("sliding_window"), config.names("layer_types")
    if types is None:
        types = [LAYER_TYPES[layer % 2 == 0] for layer in range(num_layers)]
    return windows_of_types(config, types, window, num_layers)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        found += [*llama.layer_norms(spec, layer, NORMS), *llama.linear_layers(spec, layer)]
    return found
