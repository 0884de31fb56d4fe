"""A BOS token that ``tokenizer_config.json`` asks for and ``tokenizer.json`` does not add.

transformers 4 put it in front of every prompt where the tokenizer's class is one of Llama's, and models that ask for it
were trained with it (DeepSeek's distilled ones). transformers 5 goes by ``tokenizer.json`` alone. The request is
honoured here. Tokenizers of classes that never honoured it stay as they are, as in both versions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import processors

from tgis_server.model_files import read_json

CLASSES_ADDING_BOS = ("Llama", "CodeLlama", "Gemma")  # classes with ``update_post_processor`` in transformers 4


def add_requested_bos(tokenizer: tokenizers.Tokenizer, model_dir: Path, tell: Callable[[str], None]) -> None:
    """Let the tokenizer begin every text with BOS where the model's files ask for it.

    Args:
        tell: is told if that cannot be done.

    Raises:
        ModelError: ``tokenizer_config.json`` cannot be read.
    """
    token = find_requested_bos(model_dir)
    if token is None:
        return
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        tell(
            f"tokenizer_config.json asks for the BOS token {token}, which the vocabulary does not have: it is left out."
        )
        return
    if tokenizer.encode("").ids[:1] == [token_id]:
        return
    template = processors.TemplateProcessing(single=[token, "$A"], special_tokens=[(token, token_id)])
    before = tokenizer.post_processor
    tokenizer.post_processor = processors.Sequence([before, template]) if before else template


def find_requested_bos(model_dir: Path) -> str | None:
    """The token that ``add_bos_token`` of ``tokenizer_config.json`` means, if the tokenizer's class looks at it."""
    file = model_dir / "tokenizer_config.json"
    if not os.path.lexists(file):
        return None
    config = read_json(file)
    name = config.get("tokenizer_class")
    if not config.get("add_bos_token") or (name and str(name).partition("Tokenizer")[0] not in CLASSES_ADDING_BOS):
        return None
    token = config.get("bos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return str(text) if text else None
