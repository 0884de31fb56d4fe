"""Gemma: Llama's layout with scaled embeddings, norms whose weights are stored minus one, and large heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "GemmaForCausalLM"
DEFAULTS: dict[str, Any] = {key: value for key, value in llama.DEFAULTS.items() if key != "mlp_bias"} | {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}

parameters = llama.parameters


def read(config: ConfigFile) -> DecoderSpec:
    config.refuse(("use_bidirectional_attention",))
    spec, attention_bias = llama.read_llama(config, "gemma"), config.flag("attention_bias")
    return replace(
        spec,
        norm="rms_plus_one",
        activation="gelu_tanh" if spec.activation == "gelu" else spec.activation,  # early files mean the approximation
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
        embedding_scale=spec.hidden_size**0.5,
        is_embedding_scale_rounded=True,
    )
