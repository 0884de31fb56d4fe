"""The part of a config.json that every decoder has, whatever its keys are called."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.end_tokens import read_eos_ids
from tgis_server.engines.native.spec import DecoderSpec, Positions
from tgis_server.model_files import Length


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys under which a family's config.json holds what every decoder has; empty where the family has no key."""

    hidden_size: str = "hidden_size"
    intermediate_size: str = "intermediate_size"
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    num_kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    norm_eps: str = "rms_norm_eps"
    activation: str = "hidden_act"


LLAMA_KEYS = Keys()


def read_decoder(
    config: ConfigFile, family: str, keys: Keys, positions: Positions | None, length: Length
) -> DecoderSpec:
    """Read what every decoder has. By default, the MLP is four times as wide as the hidden state."""
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
        norm_eps=config.number(keys.norm_eps) if keys.norm_eps else 1e-5,  # the default of torch's LayerNorm
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
    """The style of GPT-2 and its successors: LayerNorms, a plain MLP, and biases everywhere except on the head."""
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
