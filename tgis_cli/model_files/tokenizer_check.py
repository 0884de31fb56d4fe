"""Whether a model's tokenizer can be used, asked of the code that a start runs."""

from __future__ import annotations

import os
from pathlib import Path

from tgis_server import failures
from tgis_server.host.regular_file import open_regular

BORDER_BYTES = 256  # of a file, at both of its ends


def check_tokenizer(model_dir: Path) -> None:
    """Quickly: only what looks damaged is read as a start reads it, which takes seconds for a large vocabulary.

    Raises:
        ModelError: the front-end would end with it.
    """
    file = model_dir / "tokenizer.json"
    if not os.path.lexists(file):
        raise failures.NO_TOKENIZER.error(model_dir=model_dir)
    if looks_damaged(file) or looks_damaged(model_dir / "tokenizer_config.json"):
        load_tokenizer(model_dir)


def load_tokenizer(model_dir: Path) -> list[str]:
    """Read the tokenizer as a start does.

    Returns:
        Sentences to warn of.

    Raises:
        ModelError: the front-end would end with it.
    """
    from tgis_server.frontend.text import load_vocabulary

    warnings: list[str] = []
    tokenizer, _ = load_vocabulary(model_dir, num_workers=1, tell=warnings.append)
    tokenizer.close()
    return warnings


def looks_damaged(file: Path) -> bool:
    """Whether a file is there and cannot be a JSON object, by its first and last bytes."""
    try:
        with open_regular(file) as stream:
            beginning = stream.read(BORDER_BYTES)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - BORDER_BYTES))
            end = stream.read()
    except FileNotFoundError:
        return os.path.lexists(file)  # as a link to nothing
    except OSError:
        return True
    return not (beginning.lstrip().startswith(b"{") and end.rstrip().endswith(b"}"))
