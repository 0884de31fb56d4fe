"""Whether the model that a manifest names belongs to a family that is served, judged by the cache or its name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tgis_server.engines.catalogue import find_engine
from tgis_server.errors import ModelError

FindModel = Callable[[str], Path | None]  # from a name to the model's directory on this machine, if it is here

# Families that no engine serves, by the names of their models. Newer models from the same makers may well be served,
# such as Falcon 3, which is a Llama, so the patterns match only known names.
UNSERVED = {
    "an encoder-decoder model": r"\b(t5|flan-t5|flan-ul2|ul2|mt0|mt5|byt5|t0|t0pp|bart|pegasus)\b",
    "a mixture of experts of another kind": r"\b(dbrx|deepseek-(v\d|moe)|llama-4)\b",
    "a Gemma 3n": r"\bgemma-3n\b",
    "a ChatGLM": r"\bchatglm",
    "a state space model": r"\b(mamba|jamba|rwkv|granite-4|falcon-mamba)",
    "quantized": r"\b(gpt-oss|gptq|awq|gguf|exl2|bnb-4bit|int4|int8|fp8|w4a16|w8a8)\b",
}


def explain_unserved(name: str, find_model: FindModel) -> str:
    """Why no engine serves a model; empty if one does, or if that is unknown.

    Args:
        name: as in the manifest: a hub id, or a path in the container.
    """
    model_dir = find_model(name)
    if model_dir is not None:
        try:
            find_engine(model_dir)
        except ModelError as error:
            return str(error)
        return ""
    words = re.sub(r"[_\s]", "-", name.rstrip("/").rpartition("/")[2].lower())
    for what, pattern in UNSERVED.items():
        if re.search(pattern, words):
            return f"Judging by its name, this model is {what}, which no engine serves."
    return ""
