"""SmolLM3: Llama's layout, in which some layers are not rotated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile, show
from tgis_server.engines.native.config.windows import LAYER_TYPES, windows_of_types
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "SmolLM3ForCausalLM"
DEFAULTS: dict[str, Any] = llama.DEFAULTS | {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "eos_token_id": 128001,
    "rope_theta": 2000000.0,
    "no_rope_layers": None,  # for each layer 1 if it is rotated (sic), otherwise 0
    "no_rope_layer_interval": 4,
    "use_sliding_window": False,
    "sliding_window": None,
}

parameters = llama.parameters


def read(config: ConfigFile) -> DecoderSpec:
    spec = replace(llama.read(config), family="smollm3")
    flags = config.get("no_rope_layers")
    if flags is None:
        interval = config.integer("no_rope_layer_interval")
        flags = [int((layer + 1) % interval != 0) for layer in range(spec.num_layers)]
    if not (isinstance(flags, list) and len(flags) == spec.num_layers and set(flags) <= {0, 1}):
        raise config.fail(f"no_rope_layers {show(flags)} is not a list of 0 or 1 for {spec.num_layers} layers.")
    window = config.optional_integer("sliding_window") if config.flag("use_sliding_window") else None
    types = config.names("layer_types") or [LAYER_TYPES[window is not None and not flag] for flag in flags]
    return replace(
        spec,
        windows=windows_of_types(config, types, window, spec.num_layers),
        rotated_layers=tuple(map(bool, flags)),
    )
