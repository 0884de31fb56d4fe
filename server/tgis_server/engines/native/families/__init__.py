"""Model families: from config.json to ``DecoderSpec``, and from checkpoint tensors to our parameters. Imports no torch.

A family is one small module with ``ARCHITECTURE``, ``DEFAULTS``, ``read(config)`` and ``parameters(spec)``. It may also
have ``ALIASES``: other spellings of keys in config.json.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from tgis_server.engines.native.config.config_file import ConfigFile, show
from tgis_server.engines.native.families import (
    arcee,
    bloom,
    codegen,
    cohere,
    cohere2,
    dots1,
    ernie4_5_moe,
    exaone4,
    falcon,
    gemma,
    gemma2,
    gemma3_text,
    glm,
    glm4,
    glm4_moe,
    gpt2,
    gpt_bigcode,
    gpt_neo,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    granitemoe,
    granitemoeshared,
    helium,
    llama,
    ministral,
    mistral,
    mixtral,
    mpt,
    nemotron,
    olmo,
    olmo2,
    olmo3,
    olmoe,
    opt,
    persimmon,
    phi,
    phi3,
    phimoe,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
    t5,
)
from tgis_server.engines.native.parameters.pieces import Parameter
from tgis_server.engines.native.spec import DecoderSpec

FAMILIES: dict[str, ModuleType] = {
    "arcee": arcee,
    "bloom": bloom,
    "codegen": codegen,
    "cohere": cohere,
    "cohere2": cohere2,
    "dots1": dots1,
    "ernie4_5_moe": ernie4_5_moe,
    "exaone4": exaone4,
    "falcon": falcon,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3_text,
    "glm": glm,
    "glm4": glm4,
    "glm4_moe": glm4_moe,
    "gpt2": gpt2,
    "gpt_bigcode": gpt_bigcode,
    "gpt_neo": gpt_neo,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "gptj": gptj,
    "granite": granite,
    "granitemoe": granitemoe,
    "granitemoeshared": granitemoeshared,
    "helium": helium,
    "llama": llama,
    "ministral": ministral,
    "mistral": mistral,
    "mixtral": mixtral,
    "mpt": mpt,
    "nemotron": nemotron,
    "olmo": olmo,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "olmoe": olmoe,
    "opt": opt,
    "persimmon": persimmon,
    "phi": phi,
    "phi3": phi3,
    "phimoe": phimoe,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "seed_oss": seed_oss,
    "smollm3": smollm3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}
# The engine also runs T5, but the front-end cannot make requests for an encoder yet: commands and doors refuse T5.
ALL_FAMILIES: dict[str, ModuleType] = {**FAMILIES, "t5": t5}

# Models with images: their architecture. The part for text is of a family of its own, in ``text_config``.
NESTING = {"gemma3": "Gemma3ForConditionalGeneration", "mistral3": "Mistral3ForConditionalGeneration"}

# Keys of features that change results. Only families with the key in DEFAULTS implement the feature.
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
        families: the families to accept.

    Raises:
        ModelError: the directory or its config is missing or broken, or the config asks for something unsupported.
    """
    config = ConfigFile.read(model_dir)
    model_type = config.stated("model_type")
    architectures = config.names("architectures") or []
    nesting = NESTING.get(model_type) if isinstance(model_type, str) else None
    if nesting and isinstance(config.stated("text_config"), dict):
        config = config.of_text()
        model_type = config.stated("model_type")
    family = families.get(model_type) if isinstance(model_type, str) else None
    if family is None or (architectures and not {*names_of(family), nesting}.intersection(architectures)):
        name = show(", ".join(architectures) or model_type).strip("'")
        nearest = difflib.get_close_matches(str(model_type), families, 2, 0.65) if family is None else []
        raise config.fail(
            f"architecture {name} has no native engine, which serves the model types {', '.join(families)}."
            + (f" The nearest by name: {' and '.join(nearest)}." if nearest else "")
        )
    aliases: dict[str, str] = getattr(family, "ALIASES", {})
    config.refuse(key for key in UNSUPPORTED_KEYS if key not in family.DEFAULTS and key not in aliases)
    if config.stated("is_causal") is False:  # an embedding model, whose tokens see later tokens
        raise config.fail("is_causal = False is not supported by the native engine.")
    spec: DecoderSpec = family.read(config.of_family(family.DEFAULTS, aliases))
    return spec


def names_of(family: ModuleType) -> set[str]:
    """The names that a config.json may give: the generating model's or, if it has no head, its base model's."""
    architecture: str = family.ARCHITECTURE
    return {architecture, architecture.replace("ForCausalLM", "Model").replace("LMHeadModel", "Model")}


def parameters_of(spec: DecoderSpec) -> list[Parameter]:
    """Every parameter of the model, and the checkpoint tensors that it is made of."""
    found: list[Parameter] = ALL_FAMILIES[spec.family].parameters(spec)
    return found


def outer_tensors(spec: DecoderSpec) -> tuple[str, str]:
    """Names of the embedding and the head in checkpoints; files may contain the head even if it is tied."""
    names = {p.name: p.pieces[0].tensor for p in parameters_of(replace(spec, is_head_tied=False))}
    return names["embedding"], names["head"]
