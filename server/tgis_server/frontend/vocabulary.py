"""What turns text into tokens and back, read from a model's files: by the front-end, and by checks before a start.

One way for all, so that no check is content with what a start refuses.
"""

from __future__ import annotations

from pathlib import Path

from tgis_server.frontend.detokenizer import PieceDecoder
from tgis_server.frontend.tokenizer import Tokenizer


def load_vocabulary(
    model_dir: Path, num_workers: int, *, output_special_tokens: bool = False
) -> tuple[Tokenizer, PieceDecoder]:
    """See :meth:`Tokenizer.load` and :class:`PieceDecoder`, also for errors."""
    tokenizer = Tokenizer.load(model_dir, num_workers)
    return tokenizer, PieceDecoder(tokenizer.inner, output_special_tokens=output_special_tokens)
