"""Model families: config.json to ``DecoderSpec``, and checkpoint names to our parameters. No torch.

A family is one small file with ``ARCHITECTURE``, ``DEFAULTS``, ``read(config)`` and ``parameters(spec)``, and perhaps
``ALIASES``: other spellings of keys of config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from tgis_server.engines.native.families import (
    bloom,
    gemma2,
    gpt2,
    gpt_neox,
    granite,
    llama,
    mistral,
    phi,
    phi3,
    qwen2,
    qwen3,
    t5,
)
from tgis_server.engines.native.families.config_file import ConfigFile, show
from tgis_server.engines.native.parameters import Parameter
from tgis_server.engines.native.spec import DecoderSpec

FAMILIES: dict[str, ModuleType] = {
    "bloom": bloom,
    "gemma2": gemma2,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "granite": granite,
    "llama": llama,
    "mistral": mistral,
    "phi": phi,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen3": qwen3,
}
# The engine runs these too, but the front-end makes no requests for an encoder yet: commands and doors refuse them.
ALL_FAMILIES: dict[str, ModuleType] = {**FAMILIES, "t5": t5}

# Features that checkpoints of these families may carry, that change results, and that nothing here implements.
UNSUPPORTED_KEYS = (
    "quantization_config",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "alibi",
    "num_local_experts",
)


def read_spec(model_dir: Path, families: Mapping[str, ModuleType] = FAMILIES) -> DecoderSpec:
    """Read a model directory's config.json.

    Args:
        model_dir: the model.
        families: those that it may be of.

    Raises:
        ModelError: the directory or its config is missing or broken, or names something that is not implemented.
    """
    config = ConfigFile.read(model_dir)
    model_type = config.stated("model_type")
    family = families.get(model_type) if isinstance(model_type, str) else None
    architectures = config.names("architectures") or []
    if family is None or (architectures and not names_of(family).intersection(architectures)):
        name = show(", ".join(architectures) or model_type).strip("'")
        supported = ", ".join(f.ARCHITECTURE for f in families.values())
        raise config.fail(f"architecture {name} has no native engine; supported are {supported}.")
    config.refuse(key for key in UNSUPPORTED_KEYS if key not in family.DEFAULTS)
    if config.stated("is_causal") is False:  # models of embeddings, whose tokens see those behind them
        raise config.fail("is_causal = False is not supported by the native engine.")
    spec: DecoderSpec = family.read(config.of_family(family.DEFAULTS, getattr(family, "ALIASES", {})))
    return spec


def names_of(family: ModuleType) -> set[str]:
    """Architectures of a config.json: the model that generates, and the one below its head, where that was saved."""
    architecture: str = family.ARCHITECTURE
    return {architecture, architecture.replace("ForCausalLM", "Model").replace("LMHeadModel", "Model")}


def parameters_of(spec: DecoderSpec) -> list[Parameter]:
    """Every parameter of the model and the checkpoint tensors it is made of."""
    found: list[Parameter] = ALL_FAMILIES[spec.family].parameters(spec)
    return found


def outer_tensors(spec: DecoderSpec) -> tuple[str, str]:
    """What checkpoints call the embedding and the head, which files may hold even where it is tied."""
    names = {p.name: p.pieces[0].tensor for p in parameters_of(replace(spec, is_head_tied=False))}
    return names["embedding"], names["head"]
