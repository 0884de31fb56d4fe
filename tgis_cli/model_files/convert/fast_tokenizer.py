"""Makes ``tokenizer.json`` with transformers for a model that has only older tokenizer files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tgis_cli.model_files.cache.disk import write_errors_explained, written_whole
from tgis_server.errors import ModelError

NAME = "tokenizer.json"
# Any of these means that there is a tokenizer to convert.
SOURCES = (
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
VOCABULARIES = ("*.model", "*vocab*", "*.tiktoken", "*.bpe")


def has_slow_tokenizer(model_dir: Path) -> bool:
    """Whether there are tokenizer files, but not the one that serving needs."""
    return not (model_dir / NAME).exists() and any((model_dir / name).exists() for name in SOURCES)


def convert_to_fast_tokenizer(model_dir: Path, output_dir: Path) -> Path:
    """Make ``tokenizer.json`` in an existing directory. Runs code of the model if TRUST_REMOTE_CODE is ``true``.

    Raises:
        ModelError: the tokenizer cannot be loaded or converted; the text names what is missing.
        UsageError: the directory cannot be written.
    """
    # Without a vocabulary, transformers silently makes a tokenizer without words.
    if not any(path for pattern in VOCABULARIES for path in model_dir.glob(pattern)):
        raise ModelError(
            f"{model_dir} has no {NAME} and no vocabulary to make it from ({', '.join(VOCABULARIES)}): download the "
            "model again, or get one that comes with a tokenizer."
        )
    try:
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ModelError(
            f"{model_dir} has no {NAME}, and making one requires transformers: pip install 'tgis[convert]'."
        ) from error
    logging.set_verbosity_error()  # failures are reported below, in one sentence
    target = output_dir / NAME
    is_trusted = os.environ.get("TRUST_REMOTE_CODE", "") == "true"
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory, NAME)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                model_dir, local_files_only=True, trust_remote_code=is_trusted, use_fast=True
            )
            tokenizer.save_pretrained(directory)
            Tokenizer.from_file(str(made))
        except Exception as error:  # the libraries raise anything
            raise ModelError(explain_tokenizer_error(model_dir, error, is_made=made.exists())) from error
        advice = "name another directory with `tgis convert-to-fast-tokenizer --output-path`"
        with write_errors_explained(output_dir, advice), written_whole(target) as temporary:
            temporary.write_bytes(made.read_bytes())
    return target


def explain_tokenizer_error(model_dir: Path, error: Exception, *, is_made: bool) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    if "trust_remote_code" in str(error):
        return f"The tokenizer of {model_dir} needs code that comes with the model: set TRUST_REMOTE_CODE=true."
    if isinstance(error, ImportError) or "sentencepiece" in str(error) or "tiktoken" in str(error):
        return f"The tokenizer of {model_dir} needs more libraries: pip install 'tgis[convert]' ({reason})."
    if not is_made:
        return f"No {NAME} can be made from the tokenizer in {model_dir} ({reason}): get a model that comes with one."
    return f"The {NAME} made from {model_dir} is unusable ({reason}): get a model that comes with one."
