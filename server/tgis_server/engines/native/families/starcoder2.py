"""StarCoder 2: Llama's attention with LayerNorms, a plain MLP, and biases everywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim, with_biases
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.config.windows import read_uniform_window
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.layouts import o_and_down, up_layer
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Starcoder2ForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value
    for key, value in llama.DEFAULTS.items()
    if key not in ("rms_norm_eps", "attention_bias", "mlp_bias", "head_dim")
} | {
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "sliding_window": None,
    "use_bias": True,
    "tie_word_embeddings": True,
    "eos_token_id": 50256,
}
KEYS = Keys(head_dim="", norm_eps="norm_epsilon")


def read(config: ConfigFile) -> DecoderSpec:
    rope = read_rope(config, read_head_dim(config, KEYS))
    spec = with_biases(read_decoder(config, "starcoder2", KEYS, rope, read_length(config, rope)))
    has_bias = config.flag("use_bias")
    return replace(
        spec,
        windows=read_uniform_window(config, spec.num_layers),
        has_qkv_bias=has_bias,
        has_o_bias=has_bias,
        has_mlp_bias=has_bias,
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        theirs = f"model.layers.{layer}."
        found += [
            *llama.layer_norms(spec, layer),
            *llama.split_qkv(spec, layer),
            *up_layer(spec, layer, theirs + "mlp.c_fc"),
            *o_and_down(spec, layer, theirs + "self_attn.o_proj", theirs + "mlp.c_proj"),
        ]
    return found
