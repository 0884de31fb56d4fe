"""Text that arrives piece by piece, shown on a terminal at once and broken between words.

A word is written as it arrives. Once it crosses the right edge it is erased and written again on the next line, so
nothing is held back and no word is broken, unless it is longer than a line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import TextIO

SAVE_CURSOR, RESTORE_CURSOR, ERASE_REST = "\x1b7", "\x1b8", "\x1b[K"
RESET, DIM = "\x1b[0m", "\x1b[2m"
TAB_COLUMNS = 8


class WordWriter:
    """Writes to a terminal that obeys escape sequences, and tracks the cursor's column.

    The text must have no control characters but tabs and line ends. Nothing else may move the cursor.
    """

    def __init__(self, stream: TextIO, get_width: Callable[[], int]) -> None:
        """
        Args:
            get_width: the terminal's current number of columns; called at every write, because windows are resized.
        """
        self._stream = stream
        self._get_width = get_width
        self._width = get_width()
        self.column = 0  # equal to the width: the line is full, and the next character starts a line
        self._word = ""  # what to write again if the word moves: its characters and styles
        self._word_start: int | None = None  # its column; None between words
        self._is_break_due = False  # a space after a full line became a line end, written when more follows

    @property
    def num_free(self) -> int:
        """Columns to the right of the cursor."""
        return self._width - self.column

    def write(self, text: str, style: str = "") -> None:
        """
        Args:
            style: an SGR sequence for this text; empty for the terminal's own style.
        """
        if (width := self._get_width()) != self._width:
            self._resize(width)
        self._keep(style)
        shown = "".join([self._put(character, style) for character in text])
        if style:
            shown = style + shown + RESET
            self._keep(RESET)
        self._stream.write(shown)
        self._stream.flush()

    def end_line(self) -> None:
        """Move to the start of a line, unless the cursor is already there."""
        if self.column or self._is_break_due:
            self.write("\n")

    def _put(self, character: str, style: str) -> str:
        """What to write for one character."""
        if character == "\n":
            self._end_word()
            self.column, self._is_break_due = 0, False
            return "\n"
        if character in " \t":
            return self._put_space(TAB_COLUMNS - self.column % TAB_COLUMNS if character == "\t" else 1)
        width = get_character_width(character)
        if width == 0:
            self._keep(character)
            return character
        prefix = "\n" if self._is_break_due else ""
        if self._is_break_due:
            self.column, self._is_break_due = 0, False
        if width == 2:  # Chinese and Japanese text may be broken between any two of these
            self._end_word()
        elif self._word_start is None:
            prefix += self._start_word(style)
        if self.column + width > self._width:
            if self._word_start:
                return self._move_word(character, width)
            self.column = 0  # the terminal continues on the next line by itself
        self.column += width
        self._keep(character)
        return prefix + character

    def _put_space(self, count: int) -> str:
        self._end_word()
        if self.column + count > self._width:
            self._is_break_due = True
        if self._is_break_due:
            return ""
        self.column += count
        return " " * count

    def _start_word(self, style: str) -> str:
        if self.column >= self._width:
            self.column = 0
        self._word, self._word_start = style, self.column
        return SAVE_CURSOR if self.column else ""

    def _keep(self, text: str) -> None:
        """Remember what to write again. A word at the start of a line never moves."""
        if self._word_start:
            self._word += text

    def _end_word(self) -> None:
        self._word, self._word_start = "", None

    def _move_word(self, character: str, width: int) -> str:
        """Write the word again on the next line, because it does not fit."""
        assert self._word_start, "only a word that starts within a line can move"
        self.column = self.column - self._word_start + width
        self._word_start = 0
        return RESTORE_CURSOR + ERASE_REST + "\n" + self._word + character

    def _resize(self, width: int) -> None:
        """Leave the word where it is: the terminal has rewrapped its lines, and its saved cursor may be wrong."""
        if self.column > width:
            self.column %= width
        if self._word_start:
            self._word_start = 0
        self._width = width


@lru_cache(maxsize=4096)
def get_character_width(character: str) -> int:
    """Columns of a character: 0 for those that combine with the one before, 2 for wide ones."""
    if character.isascii():
        return 1
    is_vowel_of_a_syllable = "\u1160" <= character <= "\u11ff"  # Hangul
    if is_vowel_of_a_syllable or (unicodedata.category(character) in ("Mn", "Me", "Cf") and character != "\u00ad"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
