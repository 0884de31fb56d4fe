"""Writing model files: checks for free disk space, errors when it runs out, and final names only for whole files."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tgis_server.errors import NotEnoughDevices, UsageError
from tgis_server.words.sizes import format_bytes

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
OTHER_CACHE = "name another cache with HF_HUB_CACHE"
INCOMPLETE = ".incomplete"  # suffix of files that are still being written

Advance = Callable[[int], None]  # takes the number of bytes processed since the last call


def count_free_bytes(status: os.statvfs_result) -> int | None:
    """Bytes that this user may still write; ``None`` if the file system does not count them."""
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def free_disk_bytes(directory: Path) -> int | None:
    """Free bytes at a directory, or at its nearest existing parent; see :func:`count_free_bytes`."""
    while not os.path.exists(directory) and directory != directory.parent:
        directory = directory.parent
    return count_free_bytes(os.statvfs(directory))


def describe_free_space(free_bytes: int | None) -> str:
    """``1.5 GiB free``."""
    return "free space not counted" if free_bytes is None else f"{format_bytes(free_bytes)} free"


def check_disk(directory: Path, need_bytes: int, what: str, otherwise: str = OTHER_CACHE) -> None:
    """
    Args:
        what: the subject of the error message.
        otherwise: advice, as an alternative to freeing space.

    Raises:
        NotEnoughDevices: there is too little space.
    """
    free_bytes = free_disk_bytes(directory)
    if free_bytes is not None and need_bytes > free_bytes:
        raise NotEnoughDevices(
            f"{what} needs {format_bytes(need_bytes)} in {directory}, but {format_bytes(free_bytes)} is free: free "
            f"{format_bytes(need_bytes - free_bytes)}, or {otherwise}."
        )


def explain_full_disk(error: OSError, directory: Path) -> str:
    """The message for a write that failed for lack of space."""
    kind = {errno.EDQUOT: "the quota is used up", errno.EFBIG: "the limit of `ulimit -f` is reached"}
    reason = kind.get(error.errno or 0, describe_free_space(free_disk_bytes(directory)))
    return f"No space is left in {directory} ({reason}): free some and run the command again."


@contextmanager
def write_errors_explained(directory: Path, advice: str) -> Iterator[None]:
    """
    Raises:
        NotEnoughDevices: the disk was full.
        UsageError: writing failed for another reason, which the text states together with ``advice``.
    """
    try:
        yield
    except BrokenPipeError:  # the command's own output
        raise
    except OSError as error:
        if error.errno in FULL:
            raise NotEnoughDevices(explain_full_disk(error, directory)) from error
        raise UsageError(f"{directory} cannot be written ({error.strerror}): {advice}.") from error


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A hidden name next to ``target``, renamed to it if the block succeeds.

    The name is unique, as not every file system has locks. The content is on disk before it is renamed.
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
    """Flush a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(file: BinaryIO, chunk: bytes) -> None:
    """Write all of a chunk. An unbuffered write may be partial; on a full disk, only the next one fails."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
