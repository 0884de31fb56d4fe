"""Opening files that others have put in place: a model's, a certificate. Nothing but a regular file is ever opened.

A named pipe would hold up its reader for ever, and a device may do anything.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

LINKS = {errno.ENOENT: "it is a link to nothing", errno.ELOOP: "it is a link that leads back to itself"}


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened, or is no regular file or a link to nothing, which ``strerror`` tells then.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in LINKS and os.path.islink(path):
            raise OSError(error.errno, LINKS[error.errno], str(path)) from error
        raise
    refuse_others(path, status.st_mode)
    # Not to wait for a writer, should it be replaced by a pipe meanwhile.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb")
    try:
        refuse_others(path, os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path) -> bytes:
    """All that it holds. Errors as for :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def refuse_others(path: Path, mode: int) -> None:
    kind = stat.S_IFMT(mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.ENOTSUP, f"it is {KINDS.get(kind, 'something else')}, not a file", str(path))
