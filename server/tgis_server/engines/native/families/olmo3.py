"""OLMo 3: OLMo 2 with windows on three of four layers; long contexts rotate only the others differently."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.config.decoder import read_head_dim
from tgis_server.engines.native.config.rope import read_ropes_by_type
from tgis_server.engines.native.config.windows import read_windows_between
from tgis_server.engines.native.families import olmo2
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "Olmo3ForCausalLM"
DEFAULTS: dict[str, Any] = {**olmo2.DEFAULTS, "rope_theta": 500000.0, "sliding_window": 4096}

parameters = olmo2.parameters


def read(config: ConfigFile) -> DecoderSpec:
    rope, window_rope = read_ropes_by_type(config, read_head_dim(config))
    spec = olmo2.read_olmo2(config, "olmo3", rope)
    return replace(spec, windows=read_windows_between(config, spec.num_layers, 4), window_rope=window_rope)
