"""Room on disks for model files: asked before anything is written, and explained when it ends all the same."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

from tgis_server.errors import NotEnoughDevices
from tgis_server.sizes import format_bytes

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def free_disk_bytes(directory: Path) -> int:
    """What this user may still write to the file system of a directory, or of the nearest one above that exists."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


OTHER_CACHE = "name another cache with HF_HUB_CACHE"


def check_disk(directory: Path, need_bytes: int, what: str, otherwise: str = OTHER_CACHE) -> None:
    """
    Args:
        otherwise: what else can be done but make room.

    Raises:
        NotEnoughDevices: there is no room for ``what``, with the numbers.
    """
    free_bytes = free_disk_bytes(directory)
    if need_bytes > free_bytes:
        raise NotEnoughDevices(
            f"{what} needs {format_bytes(need_bytes)} in {directory}, but {format_bytes(free_bytes)} are free: free "
            f"{format_bytes(need_bytes - free_bytes)}, or {otherwise}."
        )


def explain_full_disk(error: OSError, directory: Path) -> str:
    """Writing failed for lack of room."""
    kind = {errno.EDQUOT: "the quota is used up", errno.EFBIG: "the largest size of a file that is allowed is reached"}
    reason = kind.get(error.errno or 0, f"{format_bytes(free_disk_bytes(directory))} are free")
    return f"No room is left in {directory} ({reason}): make room and run the command again."


def write_all(file: BinaryIO, chunk: bytes) -> None:
    """An unbuffered write may take less than it is given: at the end of a disk it does, and only the next one fails."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
