"""CodeGen: GPT-J's decoder, with queries, values and keys stored in four blocks, one for each core that trained it."""

from __future__ import annotations

from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.families import gptj
from tgis_server.engines.native.parameters.layouts import LayerRows, linear
from tgis_server.engines.native.parameters.pieces import Parameter, Split, Stored
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "CodeGenForCausalLM"
DEFAULTS: dict[str, Any] = gptj.DEFAULTS
ALIASES = gptj.ALIASES
NUM_BLOCKS = 4


def read(config: ConfigFile) -> DecoderSpec:
    spec = gptj.read_gptj(config, "codegen")
    if spec.num_heads % NUM_BLOCKS:
        raise config.fail(f"n_head {spec.num_heads} is not a multiple of {NUM_BLOCKS}.")
    return spec


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = gptj.outer_parameters(spec)
    for layer in range(spec.num_layers):
        found += [
            *linear(
                f"layers.{layer}.qkv",
                blocked_qkv(f"transformer.h.{layer}.attn.qkv_proj", spec),
                spec.hidden_size,
                has_bias=False,
            ),
            *gptj.layer_parameters(spec, layer),
        ]
    return found


def blocked_qkv(layer: str, spec: DecoderSpec) -> list[LayerRows]:
    """In each block the queries of a quarter of the heads, then their values, then their keys."""
    rows = spec.num_heads * spec.head_dim
    each = rows // NUM_BLOCKS
    rotary_dim = spec.rope.rotary_dim if spec.rope else 0

    def part(place: int, split: Split, paired_rows: int = 0) -> LayerRows:
        return LayerRows(layer, rows, split, Stored(place * each, each, 3 * each, 3 * rows, paired_rows))

    return [part(0, Split.ROWS, rotary_dim), part(2, Split.KV_HEADS, rotary_dim), part(1, Split.KV_HEADS)]
