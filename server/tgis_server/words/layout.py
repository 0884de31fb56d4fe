"""Text in a terminal's columns: lines that break between words, and rows of aligned cells.

The width is an argument, and ``None`` leaves every line whole, as in files and pipes.
Control characters in a text, such as a model's name, are made visible here, so that no caller can forget to.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from tgis_server.words.control_characters import escape_controls

GAP = 2  # blanks between two cells of a row
STACKED_INDENT = 4  # blanks before cells stacked below the first, where columns are too narrow to stand side by side
MIN_LAST = 24  # columns for the last cell of a row, unless it is shorter
MIN_ROOM = 8  # columns for a text after the start of its lines, even if the terminal is narrower
# A cell wider than a half (in the first column) or a fifth of a line, such as a long path, does not widen its column.
MAX_SHARES = (2, 5)
BREAK_AFTER = "/,;=:&?"  # where a word longer than a line may be broken


def wrap(text: str, width: int | None, *, first: str = "", rest: str | None = None) -> list[str]:
    """Break each line of a text between words into lines of at most ``width`` columns.

    A word is broken only if no line could hold it, as with long paths.

    Args:
        first: the start of the first line.
        rest: the start of the other lines; by default blanks up to the start of the text.
    """
    line, *others = escape_controls(text).split("\n")
    start = " " * count_columns(first) if rest is None else rest
    return wrap_line(line, width, first, rest) + [row for each in others for row in wrap_line(each, width, start, rest)]


def wrap_line(text: str, width: int | None, first: str, rest: str | None) -> list[str]:
    stripped = text.lstrip(" ")
    indent = " " * (len(text) - len(stripped))
    line = first + indent
    if width is None:
        return [line + stripped]
    rest = " " * count_columns(line) if rest is None else rest + indent
    width = max(width, max(count_columns(line), count_columns(rest)) + MIN_ROOM)
    lines = []
    blanks = ""  # between the words of this line
    for word in stripped.split(" "):
        if not word:
            blanks += " "
            continue
        if blanks and count_columns(line + blanks + word) > width:
            lines.append(line)
            line, blanks = rest, ""
        while count_columns(line + word) > width:
            head, word = split_word(word, width - count_columns(line))
            lines.append(line + head)
            line = rest
        line, blanks = line + blanks + word, " "
    return [one.rstrip(" ") for one in (*lines, line)]


def split_word(word: str, room: int) -> tuple[str, str]:
    """Split a word that does not fit, after a mark such as a slash if there is one in its second half."""
    size, used = 0, 0
    for char in word:
        used += count_columns(char)
        if used > room and size:
            break
        size += 1
    mark = max(word.rfind(mark, 0, size) for mark in BREAK_AFTER) + 1
    size = mark if mark > size // 2 else size
    return word[:size], word[size:]


def lay_out(rows: Iterable[Sequence[str]], width: int | None = None, *, indent: int = 2) -> list[list[str]]:
    """The lines of each row, with aligned columns.

    A cell that does not fit is wrapped with a hanging indent at its column, and the next cell follows below it. Where
    the last column would be too narrow, all cells are stacked.

    Args:
        rows: all with the same number of cells.
    """
    rows = [[escape_controls(cell) for cell in row] for row in rows]
    starts = find_starts(rows, width, indent) if rows else []
    return [lay_out_row(row, starts, width) for row in rows]


def find_starts(rows: Sequence[Sequence[str]], width: int | None, indent: int) -> list[int]:
    """The column at which each cell starts."""
    starts = [indent]
    for column in range(len(rows[0]) - 1):
        sizes = [count_columns(row[column]) for row in rows]
        if width is not None:
            most = width // MAX_SHARES[min(column, 1)]
            sizes = [size for size in sizes if size <= most]
        starts.append(starts[-1] + max(sizes, default=0) + GAP)
    longest = max(count_columns(row[-1]) for row in rows)
    if width is not None and width - starts[-1] < min(MIN_LAST, longest):
        return [indent] + [indent + STACKED_INDENT] * (len(starts) - 1)
    return starts


def lay_out_row(row: Sequence[str], starts: Sequence[int], width: int | None) -> list[str]:
    lines = [""]
    is_wrapped = False  # the cell before
    for cell, start in zip(row, starts, strict=True):
        if not cell:
            continue
        if lines[-1] and (is_wrapped or count_columns(lines[-1]) > start - GAP):
            lines.append("")
        line = lines.pop()
        wrapped = wrap(cell, width, first=line + " " * (start - count_columns(line)), rest=" " * start)
        is_wrapped = len(wrapped) > 1
        lines += wrapped
    return lines


def count_columns(text: str) -> int:
    """The columns that a text takes on a terminal: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
