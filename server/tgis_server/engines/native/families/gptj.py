"""GPT-J: attention and MLP in parallel after one norm, and a rotation of neighbouring dimensions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import read_decoder, read_head_dim, with_biases
from tgis_server.engines.native.config.length import read_table_length
from tgis_server.engines.native.families import gpt2
from tgis_server.engines.native.parameters.layouts import (
    embedding,
    head,
    linear,
    norm,
    o_and_down,
    separate_qkv,
    up_layer,
)
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec, RopeSpec

ARCHITECTURE = "GPTJForCausalLM"
DEFAULTS: dict[str, Any] = {key: value for key, value in gpt2.DEFAULTS.items() if key != "scale_attn_weights"} | {
    "vocab_size": 50400,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "n_positions": 2048,
    "rotary_dim": 64,
    "tie_word_embeddings": False,
}
ALIASES = gpt2.ALIASES
KEYS = gpt2.KEYS


def read(config: ConfigFile) -> DecoderSpec:
    return read_gptj(config, "gptj")


def read_gptj(config: ConfigFile, family: str) -> DecoderSpec:
    head_dim, rotary_dim = read_head_dim(config, KEYS), config.integer("rotary_dim")
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise config.fail(f"a head of {head_dim} dimensions cannot rotate {rotary_dim} of them.")
    length = read_table_length(config, "n_positions")  # of angles
    rope = RopeSpec(rotary_dim=rotary_dim, is_paired=True, max_position=length.num_tokens)
    return replace(
        with_biases(read_decoder(config, family, KEYS, rope, length)),
        residual="parallel",
        has_qkv_bias=False,
        has_o_bias=False,
        has_head_bias=True,
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = outer_parameters(spec)
    for layer in range(spec.num_layers):
        attention = f"transformer.h.{layer}.attn."
        qkv = separate_qkv(attention, spec)
        found += [
            *linear(f"layers.{layer}.qkv", qkv, spec.hidden_size, has_bias=False),
            *layer_parameters(spec, layer),
        ]
    return found


def outer_parameters(spec: DecoderSpec) -> list[Parameter]:
    """Embedding, final norm and head."""
    return [
        *embedding(spec, "transformer.wte.weight"),
        *norm("final_norm", "transformer.ln_f", spec.hidden_size, has_bias=True),
        *head(spec),
    ]


def layer_parameters(spec: DecoderSpec, layer: int) -> list[Parameter]:
    """A layer without its queries, keys and values."""
    theirs, ours, hidden = f"transformer.h.{layer}.", f"layers.{layer}.", spec.hidden_size
    return [
        *norm(ours + "attention_norm", theirs + "ln_1", hidden, has_bias=True),
        *up_layer(spec, layer, theirs + "mlp.fc_in"),
        *o_and_down(spec, layer, theirs + "attn.out_proj", theirs + "mlp.fc_out"),
    ]
