"""A sign of life while a command waits: shown only if the wait is long, and erased afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TextIO

from tgis_cli.terminal.capabilities import can_encode
from tgis_server.words.control_characters import escape_controls

DELAY_S = 0.3  # a faster answer shows no spinner
EVERY_S = 0.1
SECONDS_AFTER_S = 2.0  # from then on it shows how long the wait has been
TURNS = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
MARGIN = 3  # columns that stay free: for the cursor, and for ^C
PLAIN_TURNS = "|/-\\"  # where the others cannot be encoded


class Spinner:
    """Turns at the cursor, in a thread, until it is stopped. Nothing else may write in the meantime."""

    def __init__(
        self, stream: TextIO, column: int, num_free: int, describe: Callable[[], str] = str, *, indent: str = ""
    ) -> None:
        """
        Args:
            column: the cursor's, from 0.
            num_free: columns from the cursor to the right edge; with too few nothing is shown.
            describe: says what is being waited for; called at every turn.
            indent: separates the spinner from the text to its left.
        """
        self._stream = stream
        self._back = f"\x1b[{column + 1}G"  # absolute, because the terminal may show Ctrl-C as ^C
        self._num_shown = num_free - MARGIN
        self._describe = describe
        self._indent = indent
        self._turns = TURNS if can_encode(stream, TURNS) else PLAIN_TURNS
        self._stopped = threading.Event()
        self._is_drawn = False
        self._thread = threading.Thread(target=self._turn, name="spinner", daemon=True)

    def start(self) -> Spinner:
        if self._num_shown > len(self._indent):
            self._thread.start()
        return self

    def stop(self) -> None:
        """Erase it; may be called twice."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._erase()

    def __enter__(self) -> Spinner:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _turn(self) -> None:
        started_at = time.monotonic()
        delay_s, turn = DELAY_S, 0
        while not self._stopped.wait(delay_s):
            waited_s = time.monotonic() - started_at
            words = [self._turns[turn % len(self._turns)], escape_controls(self._describe())]
            if waited_s >= SECONDS_AFTER_S:
                words.append(f"{waited_s:.0f} s")
            self._draw(self._indent + " ".join(filter(None, words)))
            delay_s, turn = EVERY_S, turn + 1

    def _draw(self, text: str) -> None:
        self._is_drawn = True
        self._write(f"{self._back}{text[: self._num_shown]}\x1b[K")

    def _erase(self) -> None:
        if self._is_drawn:
            self._is_drawn = False
            self._write(f"{self._back}\x1b[K")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone
            self._stopped.set()
