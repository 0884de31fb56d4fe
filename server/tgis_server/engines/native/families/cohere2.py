"""Cohere 2 (Command R7B, Command A): Cohere's decoder, in which only the layers with a window are rotated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.windows import read_windows_between
from tgis_server.engines.native.families import cohere
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Cohere2ForCausalLM"
DEFAULTS: dict[str, Any] = {key: value for key, value in cohere.DEFAULTS.items() if key != "use_qk_norm"} | {
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
}

parameters = cohere.parameters


def read(config: ConfigFile) -> DecoderSpec:
    spec = cohere.read_cohere(config, "cohere2")
    windows = read_windows_between(config, spec.num_layers, config.integer("sliding_window_pattern"))
    return replace(spec, windows=windows, rotated_layers=tuple(window is not None for window in windows))
