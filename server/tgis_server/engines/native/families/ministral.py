"""Ministral: Mistral's decoder, whose windows may differ between layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.windows import LAYER_TYPES, windows_of_types
from tgis_server.engines.native.families import llama, mistral
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "MinistralForCausalLM"
DEFAULTS: dict[str, Any] = mistral.DEFAULTS

parameters = llama.parameters


def read(config: ConfigFile) -> DecoderSpec:
    spec = llama.read_llama(config, "ministral")
    window = config.optional_integer("sliding_window")
    types = config.names("layer_types") or [LAYER_TYPES[window is not None]] * spec.num_layers
    return replace(spec, windows=windows_of_types(config, types, window, spec.num_layers))
