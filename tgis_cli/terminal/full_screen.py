"""A terminal used as a whole: the alternate screen, single keys, a new size at any moment.

What was on the terminal is back when the block ends, whatever ends or suspends it.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import termios
from collections.abc import Iterator, Sequence
from typing import TextIO

from tgis_cli.terminal.capabilities import get_size, is_terminal
from tgis_cli.terminal.quiet_input import ModeSwitch, changed_terminal

ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
LEAVE = "\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE = "\x1b[H", "\x1b[2K"
SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)  # what a function key sends


class FullScreen:
    """Belongs to the main thread; only :meth:`wake` may be called from others."""

    def __init__(self, output: TextIO, keys: TextIO) -> None:
        """
        Args:
            keys: where keys are typed; if this is not a terminal, there are none.
        """
        self._output = output
        self._keys = [keys.fileno()] if is_terminal(keys) else []
        self._modes = ModeSwitch(output, termios.ECHO | termios.ICANON)
        self._typed = ""  # not yet returned
        self._is_open = False
        self._woken, self._waker = os.pipe()
        for end in (self._woken, self._waker):
            os.set_blocking(end, False)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        before = signal.signal(signal.SIGWINCH, lambda *_: self.wake())
        try:
            with changed_terminal(self._enter, self._leave):
                yield
        finally:
            signal.signal(signal.SIGWINCH, before)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows now."""
        return get_size(self._output)

    def draw(self, lines: Sequence[str]) -> None:
        """Replace what is shown. Each line must fit; lines that have no row are left out.

        Raises:
            OSError: the terminal is gone.
        """
        rows = self.size[1]
        shown = [*lines, *[""] * rows][:rows]
        self._write(HOME + "\n".join(f"{CLEAR_LINE}{line}" for line in shown))

    def wait_for_key(self) -> str:
        """A key, once it is typed; empty when woken, by another thread or a new size.

        Raises:
            EOFError: no more keys can come.
        """
        if not self._typed:
            self._typed = self._read_keys()
        key, self._typed = self._typed[:1], self._typed[1:]
        return key

    def _read_keys(self) -> str:
        ready, _, _ = select.select([self._woken, *self._keys], [], [])
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 4096)
        if not set(ready) & set(self._keys):
            return ""
        typed = os.read(self._keys[0], 1024)
        if not typed:
            raise EOFError
        return SEQUENCE.sub("", typed.decode("ascii", "replace"))

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # woken already
            os.write(self._waker, b"\0")

    def _enter(self) -> None:
        with contextlib.suppress(OSError):
            if not self._modes.is_ours():
                signal.raise_signal(signal.SIGTTOU)  # suspended until the shell gives us the terminal
        self._modes.switch_off()
        self._is_open = True
        self._write(ENTER)
        self.wake()

    def _leave(self) -> None:
        is_open, self._is_open = self._is_open, False
        if is_open:
            with contextlib.suppress(OSError, ValueError):  # gone
                self._write(LEAVE)
        self._modes.restore()

    def _write(self, text: str) -> None:
        self._output.write(text)
        self._output.flush()
