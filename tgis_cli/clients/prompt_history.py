"""The lines that were typed in prompt loops, in a file of the user's state directory, oldest first.

One entry is one line of the file, with line ends written as ``\\n``. Loops that run at the same time append to the same
file. Errors in reading and writing are ignored, because prompts work without a history. Only a regular file is
opened, because a named pipe would block.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tgis_server.host.regular_file import check_is_file, open_regular
from tgis_server.host.user_dirs import find_state_dir, make_private_dir

FILE = "history"
MAX_ENTRIES = 1000
MAX_ENTRY_CHARS = 20_000  # nobody looks for a longer text with the arrow keys
MAX_BYTES = 4 << 20  # read from the end of the file
ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
MEANINGS = {written: meant for meant, written in ESCAPES.items()}


class PromptHistory:
    """The history file. Only this user can read it, because prompts are private."""

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
        """Return the latest entries, and shorten a long file to them."""
        if self._path is None:
            return []
        try:
            lines, is_whole = read_last_lines(self._path)
        except OSError:
            return []
        if len(lines) > 2 * MAX_ENTRIES or not is_whole:
            with contextlib.suppress(OSError):
                self._replace(lines[-MAX_ENTRIES:])
        entries = [unescape(line) for line in lines[-MAX_ENTRIES:] if is_entry(line)]
        self._last = entries[-1] if entries else ""
        return entries

    def add(self, entry: str) -> bool:
        """Append an entry, unless it repeats the last one or is very long; return whether it was worth keeping."""
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


def read_last_lines(path: Path) -> tuple[list[str], bool]:
    """The complete lines at the end of a file, and whether they are all of its lines.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_BYTES))
        lines = file.read(MAX_BYTES).decode(errors="replace").split("\n")[:-1]
    is_whole = size <= MAX_BYTES
    return lines if is_whole else lines[1:], is_whole


def is_entry(line: str) -> bool:
    """Whether a line can be an entry: it has no NUL and is not too long."""
    return "\0" not in line and len(line) <= 2 * MAX_ENTRY_CHARS


def open_privately(path: str, flags: int) -> int:
    """
    Raises:
        OSError: the file is not a regular file, or cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    try:
        check_is_file(Path(path), os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def escape(entry: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in entry)


def unescape(line: str) -> str:
    """The entry in a line of the file. A backslash that escapes nothing stands for itself."""
    return re.sub(r"\\[\\nr]", lambda match: MEANINGS[match[0]], line)
