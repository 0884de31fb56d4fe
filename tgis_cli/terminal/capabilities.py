"""What an output can show: whether it is a terminal that obeys escape sequences, its colours and its width."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TextIO

DEFAULT_COLUMNS, DEFAULT_LINES = 80, 24
BOX = "╭─╮│╰╯"
BOLD, DIM = "1", "2"  # for ``paint``


def is_capable(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the cursor can be moved and lines erased: a terminal that does not call itself dumb."""
    return is_terminal(stream) and environ.get("TERM", "") not in ("", "dumb")


def has_color(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether text may be coloured or dimmed; see https://no-color.org."""
    return is_capable(stream, environ) and not environ.get("NO_COLOR")


def can_draw(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether boxes may be drawn: a terminal with colours and an encoding that has their characters."""
    return can_encode(stream, BOX) and has_color(stream, environ)


def can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def get_width(stream: TextIO) -> int:
    """The current columns of a terminal; without a terminal, those of the variable COLUMNS, or 80."""
    return get_size(stream)[0]


def get_size(stream: TextIO) -> tuple[int, int]:
    """Columns and lines of a terminal; without one, the variables COLUMNS and LINES, or 80 and 24."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, lines = 0, 0
    given = (os.environ.get(name, "") for name in ("COLUMNS", "LINES"))
    wide, high = (int(text) if text.isdecimal() else 0 for text in given)
    return columns or wide or DEFAULT_COLUMNS, lines or high or DEFAULT_LINES


def find_width(stream: TextIO) -> int | None:
    """The current columns of a terminal; ``None`` for a file or pipe, where lines stay whole."""
    return get_width(stream) if is_terminal(stream) else None


def paint(text: str, code: str, *, is_colored: bool) -> str:
    """
    Args:
        code: an ANSI code, such as ``1;31`` for bold red.
    """
    return f"\x1b[{code}m{text}\x1b[0m" if is_colored else text
