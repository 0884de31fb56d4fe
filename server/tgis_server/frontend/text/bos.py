"""Adds the BOS token that ``tokenizer_config.json`` requests but ``tokenizer.json`` does not add.

transformers 4 prepended it to every prompt if the tokenizer's class was one of Llama's, and models that request it
(DeepSeek's distilled ones) were trained with it. transformers 5 reads only ``tokenizer.json``. This module honours the
request. It does not change a tokenizer if no version of transformers honoured the request for its class.
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
    """Make the tokenizer begin every text with BOS if the model's files request it.

    Args:
        tell: receives a warning if that is impossible.

    Raises:
        ModelError: ``tokenizer_config.json`` cannot be read.
    """
    token = find_requested_bos(model_dir)
    if token is None:
        return
    token_id: int | None = tokenizer.token_to_id(token)
    if token_id is None:
        tell(f"tokenizer_config.json requests the BOS token {token}, which is not in the vocabulary: it is left out.")
        return
    if tokenizer.encode("").ids[:1] == [token_id]:
        return
    template = processors.TemplateProcessing(single=[token, "$A"], special_tokens=[(token, token_id)])
    before = tokenizer.post_processor
    tokenizer.post_processor = processors.Sequence([before, template]) if before else template


def find_requested_bos(model_dir: Path) -> str | None:
    """The BOS token that ``tokenizer_config.json`` requests, if the tokenizer's class honours ``add_bos_token``."""
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
