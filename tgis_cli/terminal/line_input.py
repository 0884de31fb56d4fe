"""Lines that the user types, edited with readline where Python has it: history, Tab, pasted text in one piece.

Ctrl-C is a signal, so it is handled here too: at a prompt it cancels the line, and elsewhere it interrupts only code
that asks for that. This module does not interpret the lines.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Complete = Callable[[str, str], list[str]]  # (text before the word, the word) -> what may replace the word

BLANKS = " \t\n"
BRACKETED_PASTE = "\x1b[?2004h"  # pasted text comes between marks
PLAIN_PASTE = "\x1b[?2004l"


class LineCanceled(Exception):
    """Ctrl-C at a prompt."""

    def __init__(self, text: str) -> None:
        """
        Args:
            text: what was typed; empty also if that is unknown.
        """
        super().__init__(text)
        self.text = text


class LineInput:
    """Reads from the terminal of this process, in its main thread."""

    def __init__(self, complete: Complete, history: Iterable[str], *, is_capable: bool) -> None:
        """
        Args:
            is_capable: the terminal obeys escape sequences.
        """
        self._complete = complete
        self._readline = load_readline()
        self._matches: list[str] = []
        self._is_heeded = False
        self._brackets_pastes = False
        if self._readline:
            self._set_up(history, is_capable=is_capable)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Within the block Ctrl-C does nothing, except in :meth:`read` and :meth:`heeding_ctrl_c`."""
        before = signal.signal(signal.SIGINT, self._on_ctrl_c)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def heeding_ctrl_c(self) -> Iterator[None]:
        """
        Raises:
            LineCanceled: Ctrl-C.
        """
        self._is_heeded = True
        try:
            yield
        finally:
            self._is_heeded = False

    def read(self, prompt: str) -> str:
        """One line; pasted text may have several, with the line ends between them.

        Raises:
            LineCanceled: Ctrl-C.
            EOFError: Ctrl-D on an empty line, or the terminal is gone.
            UnicodeDecodeError: the line is not valid text in this locale.
        """
        try:
            with self.heeding_ctrl_c(), self._suspendable(prompt):
                return input(prompt).replace("\r", "\n").rstrip("\n")
        except OSError as error:
            raise EOFError from error

    def remember(self, entry: str) -> None:
        """Offer an entry with the arrow keys, unless readline cannot hold it: with a NUL, or outside this locale."""
        if self._readline:
            with contextlib.suppress(ValueError):
                self._readline.add_history(entry)

    def _on_ctrl_c(self, *_: object) -> None:
        if self._is_heeded:
            self._is_heeded = False
            raise LineCanceled(self._readline.get_line_buffer() if self._readline else "")

    @contextlib.contextmanager
    def _suspendable(self, prompt: str) -> Iterator[None]:
        """Let Ctrl-Z suspend a prompt. The shell then changes the terminal's settings: they are restored afterwards."""
        if self._readline is None or signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
            yield
            return

        def suspend(*_: object) -> None:
            settings = termios.tcgetattr(sys.stdin)
            self._write(PLAIN_PASTE if self._brackets_pastes else "")
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTSTP)  # returns when the shell continues us
            signal.signal(signal.SIGTSTP, suspend)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
            self._write((BRACKETED_PASTE if self._brackets_pastes else "") + prompt + self._readline.get_line_buffer())

        signal.signal(signal.SIGTSTP, suspend)
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _set_up(self, history: Iterable[str], *, is_capable: bool) -> None:
        readline = self._readline
        is_editline = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_editline else "tab: complete")
        self._brackets_pastes = not is_editline and is_capable
        if self._brackets_pastes:
            readline.parse_and_bind("set enable-bracketed-paste on")  # or each pasted line would be sent by itself
        readline.set_auto_history(False)
        readline.set_completer_delims(BLANKS)
        readline.set_completer(self._get_match)
        readline.clear_history()
        for entry in history:
            self.remember(entry)

    def _get_match(self, word: str, index: int) -> str | None:
        """For readline, which asks for one match at a time. An error here would be lost."""
        if index == 0:
            before = self._readline.get_line_buffer()[: self._readline.get_begidx()]
            self._matches = self._complete(before, word)
        return self._matches[index] if index < len(self._matches) else None


def load_readline() -> Any:
    """The readline module; ``None`` if this Python was built without it."""
    try:
        import readline
    except ImportError:
        return None
    return readline
