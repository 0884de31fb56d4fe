"""The file that ``--log-file`` names: a copy of every output line.

The server keeps running whatever happens to the file or disk.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from tgis_server import failures

# Non-blocking: a pipe without a reader fails at once, and a full one drops lines.
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


def check_log_file(path: Path) -> None:
    """
    Raises:
        UsageError: the file cannot be written.
    """
    try:
        os.close(open_log_file(path))
    except OSError as error:
        raise failures.LOG_FILE_NOT_WRITABLE.error(path=path, reason=error.strerror) from error


def open_log_file(path: Path) -> int:
    return os.open(path, FLAGS, 0o600)


class LogFile:
    """Appends lines to a file. Never raises: lines that cannot be written are dropped and counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1  # opened by the first line
        self._num_dropped = 0  # since the last written line
        self._is_cut = False  # only a part of the last line fitted on the disk

    def write(self, text: str) -> str:
        """Append text that ends with a newline. Returns a warning for people, or an empty string."""
        try:
            if self._fd < 0 or os.fstat(self._fd).st_nlink == 0:  # closed, or the file was removed
                self.close()
                self._fd = open_log_file(self.path)
            data = ("\n" * self._is_cut + text).encode(errors="backslashreplace")
            num_written = os.write(self._fd, data)
            self._is_cut = not data[:num_written].endswith(b"\n")
            if num_written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._num_dropped += 1
            is_first = self._num_dropped == 1
            return f"{self.path} cannot be written: {error.strerror}; lines are dropped for now." * is_first
        num_dropped, self._num_dropped = self._num_dropped, 0
        return f"{self.path} lacks {num_dropped} lines that could not be written." if num_dropped else ""

    def close(self) -> None:
        """Close the file; the next line opens whatever file has the name by then."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # a network file system may report only now that it is full
                os.close(fd)
