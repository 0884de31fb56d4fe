"""Which tokens end a sequence. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tgis_server.engines.native.families.config_file import ConfigFile, show
from tgis_server.model_files import read_json

GENERATION_CONFIG = "generation_config.json"
CONFIG = "config.json"


def read_eos_ids(config: ConfigFile, vocab_size: int, tell: Callable[[str], None]) -> tuple[int, ...]:
    """End-of-sequence ids of the first place that names one in the vocabulary; none is possible.

    These are generation_config.json, config.json, the tokenizer's ``eos_token``, and the default of the model's class.

    Args:
        vocab_size: an id beyond it never comes.
        tell: is told of such ids.

    Raises:
        ModelError: what is named is no id.
    """
    for file, raw in find_named(config):
        ids = raw if isinstance(raw, list) else [raw]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise config.fail(f"eos_token_id is {show(raw)}, but must be a token id or a list of them.", file)
        known = tuple(i for i in ids if 0 <= i < vocab_size)
        if file and len(known) < len(ids):
            tell(describe_unknown([i for i in ids if i not in known], config.model_dir / file, vocab_size))
        if known:
            return known
    return ()


def describe_unknown(ids: list[int], file: Path, vocab_size: int) -> str:
    names = show(", ".join(map(str, ids))).strip("'")
    if len(ids) == 1:
        return f"The end token {names} of {file} lies outside the vocabulary of {vocab_size}: it is never generated."
    return f"The end tokens {names} of {file} lie outside the vocabulary of {vocab_size}: they are never generated."


def find_named(config: ConfigFile) -> Iterator[tuple[str, Any]]:
    """Files that name end tokens, the one that counts most first, and what they name. A default is of no file."""
    file = config.model_dir / GENERATION_CONFIG
    if os.path.lexists(file) and (ids := read_json(file).get("eos_token_id")) is not None:
        yield GENERATION_CONFIG, ids
    if config.stated("eos_token_id") is not None:
        yield CONFIG, config.stated("eos_token_id")
    yield "tokenizer.json", read_tokenizer_eos(config.model_dir)
    if not config.has("eos_token_id") and (default := config.get("eos_token_id")) is not None:
        yield "", default


def read_tokenizer_eos(model_dir: Path) -> list[int]:
    """The id of the token that tokenizer_config.json calls ``eos_token``."""
    settings, vocabulary = model_dir / "tokenizer_config.json", model_dir / "tokenizer.json"
    token = read_json(settings).get("eos_token") if os.path.lexists(settings) else None
    if token is None or not vocabulary.exists():
        return []
    text = token.get("content") if isinstance(token, dict) else token
    added = read_json(vocabulary).get("added_tokens")
    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    ids = [entry.get("id") for entry in entries if entry.get("content") == text]
    return [i for i in ids if isinstance(i, int) and not isinstance(i, bool)]
