"""The file with the launcher's output of one `tgis run`. Only this user can read it; the last few are kept.

A log is locked as long as a process writes to it, so that no other run removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from tgis_server.host.user_dirs import find_state_dir, make_private_dir

FOLDER = "run-logs"  # in the state directory
MAX_LOGS = 5
MAX_TAIL_BYTES = 64 << 10


class RunLog:
    """An open log file. If there is no place for it, everything written is dropped."""

    def __init__(self, path: Path | None, file: BinaryIO, *, is_temporary: bool = False) -> None:
        """
        Args:
            path: ``None`` if the file has no name.
            is_temporary: the file is not where later runs would find and remove it.
        """
        self.path = path
        self.file = file
        self._is_temporary = is_temporary

    @classmethod
    def open(cls, environ: Mapping[str, str]) -> RunLog:
        """Open a log in the state directory or, if that cannot be written to, in the temporary directory."""
        state_dir = find_state_dir(environ)
        with contextlib.suppress(OSError):
            if state_dir is not None:
                return cls.create(state_dir / FOLDER)
        with contextlib.suppress(OSError):
            descriptor, name = tempfile.mkstemp(prefix="tgis-run-", suffix=".log")
            return cls(Path(name), os.fdopen(descriptor, "r+b", buffering=0), is_temporary=True)
        return cls(None, open(os.devnull, "r+b", buffering=0))

    @classmethod
    def create(cls, folder: Path) -> RunLog:
        """
        Raises:
            OSError: the folder cannot be written to.
        """
        make_private_dir(folder)
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        log = cls(path, os.fdopen(descriptor, "r+b", buffering=0))
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return log

    def read_last_line(self) -> str:
        """The last line that is not empty; empty if there is none."""
        size = os.fstat(self.file.fileno()).st_size
        tail = os.pread(self.file.fileno(), MAX_TAIL_BYTES, max(0, size - MAX_TAIL_BYTES))
        lines = [line for line in tail.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    def close(self, *, is_wanted: bool, is_needed: bool = True) -> None:
        """Close the file, and remove it or the oldest other logs.

        Args:
            is_wanted: the user has been told about the file.
            is_needed: the file says more than the user has been told.
        """
        self.file.close()
        if self.path is None:
            return
        if not is_needed or (self._is_temporary and not is_wanted):
            self.path.unlink(missing_ok=True)
        elif not self._is_temporary:
            remove_old(self.path.parent)


def remove_old(folder: Path) -> None:
    """Remove all but the latest logs and those in use."""
    for path in sorted(folder.glob("*.log"))[:-MAX_LOGS]:
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
