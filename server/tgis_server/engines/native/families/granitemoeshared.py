"""Granite with experts, and an MLP that all tokens use beside them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile
from tgis_server.engines.native.families import granitemoe
from tgis_server.engines.native.parameters.layouts import LayerRows, linear, mixture_of, stacked
from tgis_server.engines.native.parameters.pieces import Parameter, Split
from tgis_server.engines.native.spec import DecoderSpec

ARCHITECTURE = "GraniteMoeSharedForCausalLM"
DEFAULTS: dict[str, Any] = {**granitemoe.DEFAULTS, "shared_intermediate_size": 0}


def read(config: ConfigFile) -> DecoderSpec:
    spec = granitemoe.read(config)
    shared = replace(mixture_of(spec), shared_size=config.integer("shared_intermediate_size", at_least=0))
    return replace(spec, family="granitemoeshared", mixture=shared)


def parameters(spec: DecoderSpec) -> list[Parameter]:
    found = granitemoe.parameters(spec)
    size, hidden = mixture_of(spec).shared_size, spec.hidden_size
    for layer in range(spec.num_layers if size else 0):
        theirs, ours = f"model.layers.{layer}.shared_mlp.", f"layers.{layer}.shared_"
        gate_up = stacked(theirs + "input_linear", [(size, Split.ROWS)] * 2)
        down = [LayerRows(theirs + "output_linear", hidden, Split.COLUMNS)]
        found += linear(ours + "gate_up", gate_up, hidden, has_bias=False)
        found += linear(ours + "down", down, size, has_bias=False)
    return found
