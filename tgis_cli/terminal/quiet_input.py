"""Keeps a terminal from showing what is typed while a command writes there and reads nothing.

What is typed stays in the terminal's input, for the next prompt or for the shell.
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from types import FrameType
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
    terminal = ModeSwitch(output, termios.ECHO)
    with changed_terminal(terminal.switch_off, terminal.restore):
        yield


@contextlib.contextmanager
def changed_terminal(change: Callable[[], None], restore: Callable[[], None]) -> Iterator[None]:
    """Change a terminal for the block, and restore it whatever ends or suspends that. For the main thread only."""
    change()
    before = {number: signal.getsignal(number) for number in ENDINGS}

    def give_in(number: int, frame: FrameType | None) -> None:
        restore()
        handler = before[signal.Signals(number)]
        if callable(handler):  # the first process of a container has one for each
            handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)  # returns from SIGTSTP when the shell continues this process
            signal.signal(number, give_in)
        change()

    heeded = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in heeded:
        signal.signal(number, give_in)
    try:
        yield
    finally:
        restore()
        for number in heeded:
            signal.signal(number, before[number])


class ModeSwitch:
    """Local modes of the terminal behind a stream. A terminal that is gone, or in use by another job, is left alone."""

    def __init__(self, stream: TextIO, modes: int) -> None:
        """
        Args:
            modes: termios flags, such as ``ECHO``.
        """
        self._stream = stream
        self._modes = modes
        self._before: list[Any] | None = None  # its attributes; None: they are as they were

    def switch_off(self) -> None:
        with contextlib.suppress(OSError, ValueError, termios.error):
            attributes = termios.tcgetattr(self._stream)
            if not attributes[LOCAL_MODES] & self._modes or not self.is_ours():
                return
            changed = attributes.copy()
            changed[LOCAL_MODES] &= ~self._modes
            self._set(changed)
            self._before = attributes

    def restore(self) -> None:
        before, self._before = self._before, None
        with contextlib.suppress(OSError, ValueError, termios.error):
            if before is not None and self.is_ours():
                self._set(before)

    def is_ours(self) -> bool:
        """Whether this process is in the foreground: otherwise a change would suspend it.

        Raises:
            OSError: it is not the terminal that controls this process.
        """
        return os.tcgetpgrp(self._stream.fileno()) == os.getpgrp()

    def _set(self, attributes: list[Any]) -> None:
        termios.tcsetattr(self._stream, termios.TCSANOW, attributes)  # without waiting for a paused terminal
