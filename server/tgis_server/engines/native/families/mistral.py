"""Mistral: Llama's layout with a sliding window on every layer, unless the config says null."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.families.common import DEFAULTS as LLAMA_DEFAULTS
from tgis_server.engines.native.families.common import read_decoder, read_uniform_window
from tgis_server.engines.native.families.config_file import ConfigFile
from tgis_server.engines.native.families.names import split_parameters as parameters
from tgis_server.engines.native.spec import DecoderSpec

__all__ = ["ARCHITECTURE", "DEFAULTS", "parameters", "read"]

ARCHITECTURE = "MistralForCausalLM"
DEFAULTS: dict[str, Any] = {
    **LLAMA_DEFAULTS,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,  # null means none
}


def read(config: ConfigFile) -> DecoderSpec:
    spec = read_decoder(config, "mistral")
    return replace(spec, windows=read_uniform_window(config, spec.num_layers))
