"""One line that is rewritten while a command works, and erased at the end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from tgis_cli.terminal.capabilities import get_width, is_capable
from tgis_server.words.control_characters import escape_controls

CLEAR_LINE = "\r\x1b[2K"
EVERY_S = 0.1


class StatusLine:
    """Changes in place on a terminal that obeys escape sequences; elsewhere each change is a new line.

    Clear it before other output.
    """

    def __init__(
        self,
        stream: TextIO,
        environ: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        *,
        elsewhere_every_s: float = EVERY_S,
    ) -> None:
        """
        Args:
            elsewhere_every_s: the least time between lines where they cannot be cleared; if infinite, none are written.
        """
        self._stream = stream
        self.is_live = is_capable(stream, environ)  # the line changes in its place
        self._every_s = EVERY_S if self.is_live else elsewhere_every_s
        self._clock = clock
        self._written_at = float("-inf")
        self._text = ""

    def show(self, describe: Callable[[], str]) -> None:
        """Write the line, unless it was written a short time ago."""
        now = self._clock()
        if self._every_s == math.inf or now - self._written_at < self._every_s:
            return
        if (text := escape_controls(describe())) == self._text:
            return
        self._written_at, self._text = now, text
        # A line that wraps cannot be cleared.
        self._write(CLEAR_LINE + text[: get_width(self._stream) - 1] if self.is_live else f"{text}\n")

    def clear(self) -> None:
        if self.is_live and self._text:
            self._write(CLEAR_LINE)
        self._written_at, self._text = float("-inf"), ""

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # gone or full; closed
            self._stream.write(text)
            self._stream.flush()
