"""GPT-BigCode (SantaCoder, StarCoder): GPT-2's decoder with one KV head, and linear layers stored as usual."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.families import gpt2
from tgis_server.engines.native.parameters.layouts import grouped_qkv, stacked_qkv
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "GPTBigCodeForCausalLM"
DEFAULTS: dict[str, Any] = gpt2.DEFAULTS | {"activation_function": "gelu_pytorch_tanh", "multi_query": True}
ALIASES = gpt2.ALIASES


def read(config: ConfigFile) -> DecoderSpec:
    spec = gpt2.read_gpt2(config, "gpt_bigcode")
    return replace(spec, num_kv_heads=1 if config.flag("multi_query") else spec.num_heads)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    arrange = stacked_qkv if spec.num_kv_heads == 1 else grouped_qkv
    return gpt2.parameters_as(spec, arrange, is_transposed=False)
