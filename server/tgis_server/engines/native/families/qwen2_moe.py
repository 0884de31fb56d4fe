"""Qwen1.5-MoE and Qwen2-MoE: Qwen2 with many small experts, and one that all tokens use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.mixture import read_qwen_mixture
from tgis_server.engines.native.config.windows import LAYER_TYPES, windows_of_types
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.layouts import router, separate_experts, shared_mlp
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Qwen2MoeForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value for key, value in llama.DEFAULTS.items() if key not in ("attention_bias", "mlp_bias")
} | {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 32768,
    "eos_token_id": None,
    "qkv_bias": True,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


def read(config: ConfigFile) -> DecoderSpec:
    spec = llama.read_llama(config, "qwen2_moe")
    mixture = read_qwen_mixture(
        config, shared_size=config.integer("shared_expert_intermediate_size"), is_shared_gated=True
    )
    return replace(
        spec,
        has_qkv_bias=config.flag("qkv_bias"),
        mixture=mixture,
        windows=read_windows(config, spec.num_layers),
    )


def read_windows(config: ConfigFile, num_layers: int) -> tuple[int | None, ...]:
    """By default on each second one of the first ``max_window_layers`` layers."""
    window = config.optional_integer("sliding_window") if config.flag("use_sliding_window") else None
    types = config.names("layer_types")
    if types is None:
        first = config.integer("max_window_layers", at_least=0)
        types = [LAYER_TYPES[layer % 2 == 0 and layer < first] for layer in range(num_layers)]
    return windows_of_types(config, types, window, num_layers)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    return moe_parameters(spec, shared="shared_expert")


def moe_parameters(
    spec: DecoderSpec, *, shared: str = "shared_experts", choice_bias: str = "", is_stacked: bool = False
) -> list[Parameter]:
    """Llama's layout with a mixture in place of some MLPs.

    Args:
        spec: the architecture.
        shared: the MLP that all tokens use.
        choice_bias: the tensor of that name.
        is_stacked: whether it has a leading dimension of 1.
    """
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        found += [
            *llama.layer_norms(spec, layer),
            *llama.qk_norms(spec, layer),
            *llama.attention_layers(spec, layer),
        ]
        if not spec.has_experts(layer):
            found += llama.mlp_layers(spec, layer)
            continue
        theirs = f"model.layers.{layer}.mlp."
        found += [
            *router(spec, layer, theirs + "gate", theirs + choice_bias, is_stacked=is_stacked),
            *separate_experts(spec, layer, theirs + "experts"),
            *shared_mlp(spec, layer, theirs + shared, theirs + "shared_expert_gate"),
        ]
    return found
