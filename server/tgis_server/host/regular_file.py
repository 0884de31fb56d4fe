"""Opening files that someone else provides, such as a model's weights or a certificate, if they are regular files.

A named pipe would block its reader forever, and a device may do anything.
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
        OSError: it cannot be opened, is not a regular file, or is a broken link; ``strerror`` says which.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in LINKS and os.path.islink(path):
            raise OSError(error.errno, LINKS[error.errno], str(path)) from error
        raise
    check_is_file(path, status.st_mode)
    # O_NONBLOCK: do not wait for a writer if a pipe has replaced the file in between.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb")
    try:
        check_is_file(path, os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def open_file_or_pipe(path: Path) -> BinaryIO:
    """Open what a person names for reading: a file, a pipe, or ``/dev/null``, but no other device.

    Raises:
        OSError: it cannot be opened, or is a device, which may have no end.
    """
    mode = os.stat(path).st_mode
    if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and not os.path.samefile(path, os.devnull):
        raise OSError(errno.ENOTSUP, "it is a device, not a file", str(path))
    return open(path, "rb")


def read_regular(path: Path) -> bytes:
    """The contents of a file. Errors as for :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def check_is_file(path: Path, mode: int) -> None:
    kind = stat.S_IFMT(mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.ENOTSUP, f"it is {KINDS.get(kind, 'something else')}, not a file", str(path))
