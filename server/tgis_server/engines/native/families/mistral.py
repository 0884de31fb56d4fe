"""Mistral: Llama's layout with a sliding window on every layer, unless the config sets it to null."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.windows import read_uniform_window
from tgis_server.engines.native.families import llama
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "MistralForCausalLM"
DEFAULTS: dict[str, Any] = {
    **llama.DEFAULTS,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,  # null: no window
}

parameters = llama.parameters


def read(config: ConfigFile) -> DecoderSpec:
    spec = llama.read_llama(config, "mistral")
    return replace(spec, windows=read_uniform_window(config, spec.num_layers))
