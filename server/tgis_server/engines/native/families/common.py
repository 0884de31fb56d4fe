"""The part of a config.json that the families share."""

from __future__ import annotations

from tgis_server.engines.native.families.config_file import ConfigFile, read_eos_ids
from tgis_server.engines.native.families.rope import read_rope
from tgis_server.engines.native.spec import DecoderSpec, RopeSpec

LAYER_TYPES = ("full_attention", "sliding_attention")


def read_decoder(config: ConfigFile, family: str, rope: RopeSpec | None = None) -> DecoderSpec:
    """A decoder as Llama has it; families replace what they do differently."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    kv_heads, layers = config.integer("num_key_value_heads", heads), config.integer("num_hidden_layers")
    head_dim = read_head_dim(config)
    if heads % kv_heads:
        raise config.fail(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}.")
    rope = rope or read_rope(config, head_dim)
    return DecoderSpec(
        family=family,
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rope=rope,
        max_position=longest_sequence(rope),
        eos_ids=read_eos_ids(config),
        activation=config.activation(),
        windows=(None,) * layers,
        is_head_tied=config.flag("tie_word_embeddings"),
        attention_scale=head_dim**-0.5,
        dtype=config.dtype(),
    )


def read_head_dim(config: ConfigFile) -> int:
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if config.get("head_dim") is None and hidden % heads:
        raise config.fail(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}.")
    return config.integer("head_dim", hidden // heads)


def longest_sequence(rope: RopeSpec) -> int:
    """Longest sequence by the config. YaRN's stretch may not be part of ``max_position_embeddings`` (Qwen2)."""
    if rope.kind == "yarn":
        return max(rope.max_position, int(rope.original_max_position * rope.factor))
    return rope.max_position


def read_uniform_window(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """``sliding_window`` on all layers, as in Mistral and Phi-3."""
    if config.get("layer_types") is not None:
        raise config.fail("layer_types is not supported for this family by the native engine.")
    window = config.integer("sliding_window") if config.get("sliding_window") is not None else None
    return (window,) * num_layers


def read_qwen_windows(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """``sliding_window`` where ``layer_types`` says so, or else from layer ``max_window_layers`` on."""
    window = config.integer("sliding_window", 4096) if config.flag("use_sliding_window") else None
    types = config.get("layer_types")
    if types is None:
        first = config.get("max_window_layers", 28)
        types = [LAYER_TYPES[layer >= first] for layer in range(num_layers)]
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    if not isinstance(types, list) or len(types) != num_layers or any(kind not in LAYER_TYPES for kind in types):
        raise config.fail(f"layer_types must name {' or '.join(LAYER_TYPES)} for each of {num_layers} layers.")
    if window is None and "sliding_attention" in types:
        raise config.fail("layer_types names sliding_attention, but use_sliding_window is not true.")
    return tuple(window if kind == "sliding_attention" else None for kind in types)
