"""What a command is waiting for, on stderr: one line that changes on a terminal, a line per change elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from types import TracebackType
from typing import Self, TextIO

from tgis_cli.terminal.capabilities import is_capable

CLEAR = "\r\x1b[K"


class WaitLine:
    """Nothing of it is left on a terminal when the wait is over."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._is_live = is_capable(stream, environ)
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_live and self._shown:
            self._write(CLEAR)

    def show(self, text: str) -> None:
        if text == self._shown:
            return
        self._shown = text
        # A line that wraps cannot be taken back.
        self._write(CLEAR + text[: shutil.get_terminal_size().columns - 1] if self._is_live else f"{text}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
