"""StableLM: Llama's layout with LayerNorms, partial rotation, and in some models a LayerNorm for each head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import Keys, read_decoder, read_head_dim
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_rope
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.pieces import Kind, Parameter, Piece, Split
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "StableLmForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value
    for key, value in llama.DEFAULTS.items()
    if key not in ("rms_norm_eps", "attention_bias", "mlp_bias", "layer_types", "head_dim")
} | {
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "eos_token_id": 0,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
}
KEYS = Keys(head_dim="", norm_eps="layer_norm_eps")


def read(config: ConfigFile) -> DecoderSpec:
    rope = read_rope(config, read_head_dim(config, KEYS), may_be_partial=True)
    return replace(
        read_decoder(config, "stablelm", KEYS, rope, read_length(config, rope)),
        norm="layer",
        has_norm_bias=True,
        qk_norm="layer" if config.flag("qk_layernorm") else None,
        residual="parallel" if config.flag("use_parallel_residual") else "serial",
        has_qkv_bias=config.flag("use_qkv_bias"),
    )


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = llama.outer_parameters(spec)
    norms = dict(llama.NORMS)
    if spec.residual == "parallel":
        del norms["mlp_norm"]
    for layer in range(spec.num_layers):
        found += [
            *llama.layer_norms(spec, layer, norms),
            *qk_norms(spec, layer),
            *llama.linear_layers(spec, layer),
        ]
    return found


def qk_norms(spec: DecoderSpec, layer: int) -> list[Parameter]:
    """Each head has a tensor of its own; all ranks read all of them."""
    return [
        Parameter(
            f"layers.{layer}.{name}_norm",
            Kind.NORM,
            tuple(
                Piece(
                    f"model.layers.{layer}.self_attn.{name}_layernorm.norms.{head}.weight", spec.head_dim, 0, Split.COPY
                )
                for head in range(num_heads)
            ),
        )
        for name, num_heads in (("q", spec.num_heads), ("k", spec.num_kv_heads))
        if spec.qk_norm
    ]
