"""The tokens that end a sequence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tgis_server.engines.native.config.config_file import ConfigFile, show
from tgis_server.model_files import read_json

GENERATION_CONFIG = "generation_config.json"
CONFIG = "config.json"


def read_eos_ids(config: ConfigFile, vocab_size: int, warn: Callable[[str], None]) -> tuple[int, ...]:
    """End-of-sequence ids from the first source that names one within the vocabulary; may be empty.

    Sources in order: generation_config.json, config.json, the tokenizer's ``eos_token``, the model class's default.

    Args:
        config: the model's config.json.
        vocab_size: ids from this number upwards are never generated.
        warn: called for files that name such ids.

    Raises:
        ModelError: a source names something other than token ids.
    """
    for file, raw in find_named(config):
        ids = raw if isinstance(raw, list) else [raw]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise config.fail(f"eos_token_id is {show(raw)}, but must be a token id or a list of token ids.", file)
        known = tuple(i for i in ids if 0 <= i < vocab_size)
        if file and len(known) < len(ids):
            warn(describe_unknown_ids([i for i in ids if i not in known], config.model_dir / file, vocab_size))
        if known:
            return known
    return ()


def describe_unknown_ids(ids: list[int], file: Path, vocab_size: int) -> str:
    names = show(", ".join(map(str, ids))).strip("'")
    if len(ids) == 1:
        return f"The end token {names} of {file} is outside the vocabulary of {vocab_size}: it is never generated."
    return f"The end tokens {names} of {file} are outside the vocabulary of {vocab_size}: they are never generated."


def find_named(config: ConfigFile) -> Iterator[tuple[str, Any]]:
    """Files that name end tokens, in order of precedence, and the value in each. The default has an empty file name."""
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
