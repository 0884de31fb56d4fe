"""Whether a model's tokenizer can be used, checked by the code that runs at startup."""

from __future__ import annotations

import os
from pathlib import Path

from tgis_server import failures
from tgis_server.host.regular_file import open_regular

EDGE_BYTES = 256  # read at each end of a file


def check_tokenizer(model_dir: Path) -> None:
    """Check quickly: only files that look damaged are fully loaded, as that takes seconds for a large vocabulary.

    Raises:
        ModelError: the error with which the front-end would fail.
    """
    file = model_dir / "tokenizer.json"
    if not os.path.lexists(file):
        raise failures.NO_TOKENIZER.error(model_dir=model_dir)
    if looks_damaged(file) or looks_damaged(model_dir / "tokenizer_config.json"):
        load_tokenizer(model_dir)


def load_tokenizer(model_dir: Path) -> list[str]:
    """Load the tokenizer as at startup.

    Returns:
        Warnings.

    Raises:
        ModelError: the error with which the front-end would fail.
    """
    from tgis_server.frontend.text import load_vocabulary

    warnings: list[str] = []
    tokenizer, _ = load_vocabulary(model_dir, num_workers=1, tell=warnings.append)
    tokenizer.close()
    return warnings


def looks_damaged(file: Path) -> bool:
    """Whether a file exists but cannot be a JSON object, judging by its first and last bytes."""
    try:
        with open_regular(file) as stream:
            beginning = stream.read(EDGE_BYTES)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - EDGE_BYTES))
            end = stream.read()
    except FileNotFoundError:
        return os.path.lexists(file)  # a dangling link
    except OSError:
        return True
    return not (beginning.lstrip().startswith(b"{") and end.rstrip().endswith(b"}"))
