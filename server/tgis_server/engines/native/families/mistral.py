"""Mistral: Llama's layout with a sliding window on every layer, where the config has one."""

from __future__ import annotations

from dataclasses import replace

from tgis_server.engines.native.families.common import read_decoder, read_uniform_window
from tgis_server.engines.native.families.config_file import ConfigFile
from tgis_server.engines.native.families.names import split_parameters as parameters
from tgis_server.engines.native.spec import DecoderSpec

__all__ = ["ARCHITECTURE", "parameters", "read"]

ARCHITECTURE = "MistralForCausalLM"


def read(config: ConfigFile) -> DecoderSpec:
    spec = read_decoder(config, "mistral")
    return replace(spec, windows=read_uniform_window(config, spec.num_layers))
