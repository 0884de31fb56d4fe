"""Qwen2 and Qwen2.5: biases on queries, keys and values; a sliding window on the upper layers if switched on."""

from __future__ import annotations

from dataclasses import replace

from tgis_server.engines.native.families.common import QWEN_DEFAULTS as DEFAULTS
from tgis_server.engines.native.families.common import read_decoder, read_qwen_windows
from tgis_server.engines.native.families.config_file import ConfigFile
from tgis_server.engines.native.families.names import split_parameters as parameters
from tgis_server.engines.native.spec import DecoderSpec

__all__ = ["ARCHITECTURE", "DEFAULTS", "parameters", "read"]

ARCHITECTURE = "Qwen2ForCausalLM"


def read(config: ConfigFile) -> DecoderSpec:
    spec = read_decoder(config, "qwen2")
    return replace(spec, has_qkv_bias=True, windows=read_qwen_windows(config, spec.num_layers))
