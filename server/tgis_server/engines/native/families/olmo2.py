"""OLMo 2: norms after attention and MLP, and norms over all heads of queries and of keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.families import exaone4, llama
from tgis_server.engines.native.spec import DecoderSpec, RopeSpec

ARCHITECTURE = "Olmo2ForCausalLM"
DEFAULTS: dict[str, Any] = {key: value for key, value in llama.DEFAULTS.items() if key != "mlp_bias"} | {
    "vocab_size": 50304,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 50279,
}

parameters = exaone4.parameters


def read(config: ConfigFile) -> DecoderSpec:
    return read_olmo2(config, "olmo2")


def read_olmo2(config: ConfigFile, family: str, rope: RopeSpec | None = None) -> DecoderSpec:
    attention_bias = config.flag("attention_bias")
    return replace(
        llama.read_llama(config, family, rope),
        residual="post_norm",
        qk_norm="rms",
        is_qk_norm_joint=True,
        has_qkv_bias=attention_bias,
        has_o_bias=attention_bias,
    )
