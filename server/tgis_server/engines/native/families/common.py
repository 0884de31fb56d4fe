"""The part of a config.json that the families share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tgis_server.engines.native.families.config_file import ConfigFile
from tgis_server.engines.native.families.end_tokens import read_eos_ids
from tgis_server.engines.native.families.length import read_length
from tgis_server.engines.native.families.rope import read_rope
from tgis_server.engines.native.spec import DecoderSpec, Positions, RopeSpec
from tgis_server.model_files import Length

LAYER_TYPES = ("full_attention", "sliding_attention")

# What a key means that config.json leaves out: the defaults of LlamaConfig in transformers. Other families replace what
# differs in their class; there is an entry for every key that a family reads.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # as many as there are of queries
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "eos_token_id": 2,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": None,  # what the rope parameters say, else max_position_embeddings
    "layer_types": None,
    "dtype": None,
    "torch_dtype": None,
}
QWEN_DEFAULTS: dict[str, Any] = {
    **DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "eos_token_id": None,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


@dataclass(frozen=True, slots=True)
class Keys:
    """How a family's config.json spells what every decoder has; empty where it says nothing of that."""

    hidden_size: str = "hidden_size"
    intermediate_size: str = "intermediate_size"
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    num_kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    norm_eps: str = "rms_norm_eps"
    activation: str = "hidden_act"


LLAMA_KEYS = Keys()


def read_decoder(config: ConfigFile, family: str, rope: RopeSpec | None = None) -> DecoderSpec:
    """A decoder as Llama has it; families replace what they do differently."""
    rope = rope or read_rope(config, read_head_dim(config))
    return read_any(config, family, LLAMA_KEYS, rope, read_length(config, rope))


def read_any(config: ConfigFile, family: str, keys: Keys, positions: Positions | None, length: Length) -> DecoderSpec:
    """What every decoder has. MLPs of which the config does not tell the size are four times as wide as the rest."""
    hidden, heads = config.integer(keys.hidden_size), config.integer(keys.num_heads)
    layers, vocab_size = config.integer(keys.num_layers), config.integer("vocab_size")
    kv_heads = (config.optional_integer(keys.num_kv_heads) if keys.num_kv_heads else None) or heads
    head_dim = read_head_dim(config, keys)
    if heads % kv_heads:
        raise config.fail(f"{keys.num_heads} {heads} is not a multiple of {keys.num_kv_heads} {kv_heads}.")
    warnings: list[str] = []
    eos_ids = read_eos_ids(config, vocab_size, warnings.append)
    return DecoderSpec(
        family=family,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=(config.optional_integer(keys.intermediate_size) if keys.intermediate_size else None)
        or 4 * hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=config.number(keys.norm_eps),
        positions=positions,
        length=length,
        eos_ids=eos_ids,
        activation=config.activation(keys.activation) if keys.activation else "gelu_tanh",
        windows=(None,) * layers,
        is_head_tied=config.flag("tie_word_embeddings"),
        attention_scale=head_dim**-0.5,
        dtype=config.dtype(),
        warnings=tuple(warnings),
    )


def with_biases(spec: DecoderSpec) -> DecoderSpec:
    """A LayerNorm, a plain MLP, and biases everywhere but at the head: GPT-2 and what came after it."""
    return replace(
        spec,
        norm="layer",
        is_mlp_gated=False,
        has_norm_bias=True,
        has_qkv_bias=True,
        has_o_bias=True,
        has_mlp_bias=True,
    )


def read_head_dim(config: ConfigFile, keys: Keys = LLAMA_KEYS) -> int:
    head_dim = config.optional_integer(keys.head_dim) if keys.head_dim else None
    if head_dim is not None:
        return head_dim
    hidden, heads = config.integer(keys.hidden_size), config.integer(keys.num_heads)
    if hidden % heads:
        raise config.fail(f"{keys.hidden_size} {hidden} is not a multiple of {keys.num_heads} {heads}.")
    return hidden // heads


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Geometric from 2^(-8/n) on for n heads. Where n is no power of two, the rest lie between those of 2n."""
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-4 * i / power) for i in range(1, 2 * power, 2)]
    return tuple((slopes + between)[:num_heads])


def read_uniform_window(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """``sliding_window`` on all layers, as in Mistral and Phi-3. Their classes do not look at ``layer_types``."""
    window = config.optional_integer("sliding_window")
    types = config.names("layer_types")
    if types is not None and any(kind != LAYER_TYPES[window is not None] for kind in types):
        raise config.fail(
            f"layer_types is not supported for this family by the native engine, unless all are "
            f"{LAYER_TYPES[window is not None]} where sliding_window is {window}."
        )
    return (window,) * num_layers


def read_qwen_windows(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """``sliding_window`` where ``layer_types`` says so, or else from layer ``max_window_layers`` on."""
    window = config.optional_integer("sliding_window") if config.flag("use_sliding_window") else None
    types = config.names("layer_types")
    if types is None:
        first = config.integer("max_window_layers", at_least=0)
        types = [LAYER_TYPES[layer >= first] for layer in range(num_layers)]
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    if len(types) != num_layers or any(kind not in LAYER_TYPES for kind in types):
        raise config.fail(f"layer_types must name {' or '.join(LAYER_TYPES)} for each of {num_layers} layers.")
    if window is None and "sliding_attention" in types:
        raise config.fail(
            "layer_types names sliding_attention, but use_sliding_window is not true, or sliding_window is null."
        )
    return tuple(window if kind == "sliding_attention" else None for kind in types)
