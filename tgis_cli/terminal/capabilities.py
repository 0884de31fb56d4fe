"""What an output can show: whether it is a terminal that obeys escape sequences, its colours and its width."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO

DEFAULT_COLUMNS = 80


def is_capable(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the cursor can be moved and lines erased: a terminal that does not call itself dumb."""
    return is_terminal(stream) and environ.get("TERM", "") not in ("", "dumb")


def has_color(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether text may be coloured or dimmed; see https://no-color.org."""
    return is_capable(stream, environ) and not environ.get("NO_COLOR")


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def get_width(stream: TextIO) -> int:
    """Columns of a terminal now; 80 if they are unknown."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_COLUMNS
    except (OSError, ValueError):
        return DEFAULT_COLUMNS
