"""Writing model files: the room on a disk, asked for before and explained when it ends, and names for what is whole."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tgis_server.errors import NotEnoughDevices, UsageError
from tgis_server.words.sizes import format_bytes

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
OTHER_CACHE = "name another cache with HF_HUB_CACHE"
INCOMPLETE = ".incomplete"  # ends the names of what is not whole yet


def count_free_bytes(status: os.statvfs_result) -> int | None:
    """What this user may still write to a file system; ``None`` where it does not count, as one in memory may not."""
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def free_disk_bytes(directory: Path) -> int | None:
    """Of the file system of a directory, or of the nearest one above that exists; see :func:`count_free_bytes`."""
    while not os.path.exists(directory) and directory != directory.parent:
        directory = directory.parent
    return count_free_bytes(os.statvfs(directory))


def describe_room(free_bytes: int | None) -> str:
    """``1.5 GiB free``."""
    return "free space not counted" if free_bytes is None else f"{format_bytes(free_bytes)} free"


def check_disk(directory: Path, need_bytes: int, what: str, otherwise: str = OTHER_CACHE) -> None:
    """
    Args:
        otherwise: what else can be done but make room.

    Raises:
        NotEnoughDevices: there is no room for ``what``, with the numbers.
    """
    free_bytes = free_disk_bytes(directory)
    if free_bytes is not None and need_bytes > free_bytes:
        raise NotEnoughDevices(
            f"{what} needs {format_bytes(need_bytes)} in {directory}, but {format_bytes(free_bytes)} are free: free "
            f"{format_bytes(need_bytes - free_bytes)}, or {otherwise}."
        )


def explain_full_disk(error: OSError, directory: Path) -> str:
    """Writing failed for lack of room."""
    kind = {errno.EDQUOT: "the quota is used up", errno.EFBIG: "the size that `ulimit -f` allows is reached"}
    reason = kind.get(error.errno or 0, describe_room(free_disk_bytes(directory)))
    return f"No room is left in {directory} ({reason}): make room and run the command again."


@contextmanager
def write_errors_explained(directory: Path, advice: str) -> Iterator[None]:
    """
    Raises:
        NotEnoughDevices: the disk was full.
        UsageError: the block could not write for another reason; tells it, and the advice.
    """
    try:
        yield
    except BrokenPipeError:  # of the command's own output
        raise
    except OSError as error:
        if error.errno in FULL:
            raise NotEnoughDevices(explain_full_disk(error, directory)) from error
        raise UsageError(f"{directory} cannot be written ({error.strerror}): {advice}.") from error


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A hidden name beside ``target``, which nobody else uses: not every file system has locks.

    What has been written there gets the target's name when the block ends well, also if the machine loses power then.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{INCOMPLETE}")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(file: BinaryIO, chunk: bytes) -> None:
    """An unbuffered write may take less than it is given: at the end of a disk it does, and only the next one fails."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
