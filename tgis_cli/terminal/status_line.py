"""One line that is written again and again while a command works, and disappears in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TextIO

from tgis_cli.terminal.capabilities import get_width, is_capable

CLEAR_LINE = "\r\x1b[2K"
EVERY_S = 0.1


class StatusLine:
    """On a terminal that obeys escape sequences; elsewhere nothing is shown. Clear it before other output."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._is_shown = is_capable(stream, environ)
        self._clock = clock
        self._written_at: float | None = None
        self._is_written = False

    def show(self, describe: Callable[[], str]) -> None:
        """Write the line, unless that was done less than ``EVERY_S`` ago."""
        now = self._clock()
        if not self._is_shown or (self._written_at is not None and now - self._written_at < EVERY_S):
            return
        self._written_at, self._is_written = now, True
        self._write(CLEAR_LINE + describe()[: get_width(self._stream) - 1])

    def clear(self) -> None:
        if self._is_written:
            self._is_written, self._written_at = False, None
            self._write(CLEAR_LINE)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
