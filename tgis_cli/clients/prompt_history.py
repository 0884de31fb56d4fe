"""The lines that were typed in prompt loops, in a file of the user's state directory, oldest first.

One entry is one line of the file, with line ends written as ``\\n``. Loops that run at the same time append to the same
file. What cannot be read or written is left out without a word: prompts work without a history.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tgis_cli.terminal.state_dir import find_state_dir, make_private_dir

FILE = "history"
MAX_ENTRIES = 1000
MAX_ENTRY_CHARS = 20_000  # a longer text is not one that people look for with the arrow keys
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
MEANINGS = {written: meant for meant, written in ESCAPES.items()}


class PromptHistory:
    """The file. Only this user can read it, since prompts are private."""

    def __init__(self, path: Path | None) -> None:
        """
        Args:
            path: ``None``: nothing is kept.
        """
        self._path = path
        self._last = ""

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> PromptHistory:
        state_dir = find_state_dir(environ)
        return cls(state_dir / FILE if state_dir else None)

    def load(self) -> list[str]:
        """The latest entries. A file that has become long is shortened to them."""
        if self._path is None:
            return []
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        except OSError:
            return []
        if len(lines) > 2 * MAX_ENTRIES:
            with contextlib.suppress(OSError):
                self._replace(lines[-MAX_ENTRIES:])
        entries = [unescape(line) for line in lines[-MAX_ENTRIES:]]
        self._last = entries[-1] if entries else ""
        return entries

    def add(self, entry: str) -> bool:
        """Append an entry; returns whether it is worth keeping: repeated and very long ones are not."""
        if entry == self._last or len(entry) > MAX_ENTRY_CHARS:
            return False
        self._last = entry
        if self._path is not None:
            with contextlib.suppress(OSError):
                make_private_dir(self._path.parent)
                with open(self._path, "a", encoding="utf-8", errors="replace", opener=open_privately) as file:
                    file.write(escape(entry) + "\n")
        return True

    def _replace(self, lines: list[str]) -> None:
        assert self._path is not None, "there is a file to shorten"
        temporary = self._path.with_name(f"{FILE}.{os.getpid()}.tmp")
        with open(temporary, "w", encoding="utf-8", errors="replace", opener=open_privately) as file:
            file.write("".join(f"{line}\n" for line in lines))
        temporary.replace(self._path)


def open_privately(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def escape(entry: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in entry)


def unescape(line: str) -> str:
    """The entry of a line. A backslash that escapes nothing stands for itself."""
    return re.sub(r"\\[\\nr]", lambda match: MEANINGS[match[0]], line)
