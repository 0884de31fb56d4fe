"""EXAONE 4: norms only after attention and MLP, norms over heads, and in some models windows on the rotated layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.windows import read_windows_between
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Exaone4ForCausalLM"
DEFAULTS: dict[str, Any] = {
    key: value for key, value in llama.DEFAULTS.items() if key not in ("attention_bias", "mlp_bias")
} | {
    "vocab_size": 102400,
    "intermediate_size": 16384,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}
NORMS = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}


def read(config: ConfigFile) -> DecoderSpec:
    spec = replace(llama.read_llama(config, "exaone4"), residual="post_norm", qk_norm="rms")
    if config.optional_integer("sliding_window") is None:
        return spec
    pattern = 1 if config.names("layer_types") else config.integer("sliding_window_pattern")
    windows = read_windows_between(config, spec.num_layers, pattern)
    return replace(spec, windows=windows, rotated_layers=tuple(window is not None for window in windows))


def parameters(spec: DecoderSpec) -> list[Parameter]:
    """Llama's, with norms after attention and MLP."""
    found = llama.outer_parameters(spec)
    for layer in range(spec.num_layers):
        found += [
            *llama.layer_norms(spec, layer, NORMS),
            *llama.qk_norms(spec, layer),
            *llama.linear_layers(spec, layer),
        ]
    return found
