"""Loads a model's tokenizer and detokenizer, for the front-end and for checks before startup.

Both use this module, so no check passes files that startup would refuse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tgis_server.frontend.text.detokenizer import PieceDecoder
from tgis_server.frontend.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def load_vocabulary(
    model_dir: Path,
    num_workers: int,
    *,
    output_special_tokens: bool = False,
    tell: Callable[[str], None] = logger.warning,
) -> tuple[Tokenizer, PieceDecoder]:
    """See :meth:`Tokenizer.load` and :class:`PieceDecoder`, which also describe the errors."""
    tokenizer = Tokenizer.load(model_dir, num_workers, tell=tell)
    return tokenizer, PieceDecoder(tokenizer.inner, output_special_tokens=output_special_tokens)
