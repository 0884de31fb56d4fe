"""Gemma 3 without images: norms of queries and keys, and windows with a rotation of their own on most layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import read_decoder, read_head_dim
from tgis_server.engines.native.config.length import read_length
from tgis_server.engines.native.config.rope import read_ropes_by_type
from tgis_server.engines.native.config.windows import read_windows_between
from tgis_server.engines.native.families import gemma2, llama
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Gemma3ForCausalLM"
DEFAULTS: dict[str, Any] = {
    **gemma2.DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}


def read(config: ConfigFile) -> DecoderSpec:
    head_dim = read_head_dim(config, gemma2.KEYS)
    rope, window_rope = read_ropes_by_type(config, head_dim, window_theta_key="rope_local_base_freq")
    length = read_length(config, None)  # stretched already
    spec = gemma2.read_gemma(config, read_decoder(config, "gemma3_text", gemma2.KEYS, rope, length))
    windows = read_windows_between(config, spec.num_layers, config.integer("sliding_window_pattern"))
    return replace(spec, qk_norm="rms_plus_one", windows=windows, window_rope=window_rope)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = gemma2.parameters(spec)
    for layer in range(spec.num_layers):
        found += llama.qk_norms(spec, layer)
    return found
