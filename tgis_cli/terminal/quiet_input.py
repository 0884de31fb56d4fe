"""Keeps a terminal from showing what is typed while a command writes there and reads nothing.

What is typed stays in the terminal's input, for the next prompt or for the shell.
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from tgis_cli.terminal.capabilities import is_terminal

LOCAL_MODES = 3  # among the attributes of a terminal
# With their default effect they would end or suspend this process, and leave the echo off.
ENDINGS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP)


@contextlib.contextmanager
def quiet_input(output: TextIO) -> Iterator[None]:
    """Switch the echo off within the block, whatever ends or suspends it.

    Does nothing unless ``output`` is a terminal: in a pipe to a pager, the terminal is the pager's.
    """
    if not is_terminal(output) or threading.current_thread() is not threading.main_thread():
        yield
        return
    terminal = EchoSwitch(output)
    terminal.switch_off()
    numbers = [number for number in ENDINGS if signal.getsignal(number) is signal.SIG_DFL]

    def give_in(number: int, _: object) -> None:
        terminal.restore()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)  # returns from SIGTSTP when the shell continues this process
        signal.signal(number, give_in)
        terminal.switch_off()

    for number in numbers:
        signal.signal(number, give_in)
    try:
        yield
    finally:
        terminal.restore()
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class EchoSwitch:
    """The echo of the terminal behind a stream. A terminal that is gone, or in use by another job, is left alone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._before: list[Any] | None = None  # its attributes; None: the echo is unchanged

    def switch_off(self) -> None:
        with contextlib.suppress(OSError, ValueError, termios.error):
            attributes = termios.tcgetattr(self._stream)
            if not attributes[LOCAL_MODES] & termios.ECHO or not self._is_ours():
                return
            quiet = attributes.copy()
            quiet[LOCAL_MODES] &= ~termios.ECHO
            self._set(quiet)
            self._before = attributes

    def restore(self) -> None:
        before, self._before = self._before, None
        with contextlib.suppress(OSError, ValueError, termios.error):
            if before is not None and self._is_ours():
                self._set(before)

    def _set(self, attributes: list[Any]) -> None:
        termios.tcsetattr(self._stream, termios.TCSANOW, attributes)  # without waiting for a paused terminal

    def _is_ours(self) -> bool:
        """Whether this process is in the foreground: otherwise the change would suspend it."""
        return os.tcgetpgrp(self._stream.fileno()) == os.getpgrp()
