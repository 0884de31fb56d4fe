"""Reading and writing the files of a bundle: checksums as they pass, and final names only for complete files."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from tgis_cli.model_files.cache.disk import INCOMPLETE, Advance, write_all, write_errors_explained
from tgis_cli.model_files.cache.locks import lock
from tgis_cli.model_files.download.digest import CHUNK_BYTES, start_digest
from tgis_server.errors import ModelError, UsageError


class HashingReader(io.RawIOBase):
    """Hashes and counts a file while something else reads it. Ends at the stated size, whatever follows.

    Args:
        digest: what the hub states for the content; empty if unknown.
    """

    def __init__(self, source: BinaryIO, size: int, digest: str = "", advance: Advance = lambda count: None) -> None:
        super().__init__()
        self.size = size
        self.sha256 = hashlib.sha256()
        self._source = source
        self._advance = advance
        self._left_bytes = size
        self._stated_digest = digest
        self._digest = start_digest(digest, size)

    def read(self, size: int = -1) -> bytes:
        num_bytes = self._left_bytes if size < 0 else min(size, self._left_bytes)
        try:
            chunk = self._source.read(num_bytes)
        except OSError as error:
            raise ModelError(
                f"{self._source.name} cannot be read ({error.strerror}): check the disk that it is on."
            ) from error
        self._left_bytes -= len(chunk)
        self.sha256.update(chunk)
        if self._digest is not None:
            self._digest.update(chunk)
        self._advance(len(chunk))
        return chunk

    @property
    def is_as_stated(self) -> bool:
        """Whether the whole file has been read and matches the hub's digest."""
        return not self._left_bytes and (self._digest is None or bool(self._digest.hexdigest() == self._stated_digest))


def open_plain_file(path: Path, advice: str, flags: int = 0) -> FileIO:
    """Open a regular file; reading from a device or a pipe might never end.

    Raises:
        ModelError: it does not exist, cannot be opened or is not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
        stream = FileIO(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return stream
        stream.close()
        raise ModelError(f"{path} is not a regular file: do not use it.")
    except OSError as error:
        raise ModelError(f"{path} cannot be opened ({error.strerror}): {advice}.") from error


def write_new(path: Path, reader: HashingReader) -> None:
    """Copy to a new file and sync it to disk."""
    with path.open("xb", buffering=0) as file:
        while chunk := reader.read(CHUNK_BYTES):
            write_all(file, chunk)
        os.fsync(file.fileno())


@contextmanager
def new_at(path: Path, *, is_file: bool = False) -> Iterator[Path]:
    """A hidden file or directory that is renamed to ``path`` if the block succeeds, and removed if it fails.

    Raises:
        UsageError: the name is taken, or nothing can be created there.
        NotEnoughDevices: the disk was full.
    """
    path = path.absolute()
    if os.path.lexists(path) and not (not is_file and path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path} already exists: remove it, or choose another name.")
    temporary = path.with_name(f".{path.name}{INCOMPLETE}")

    def make() -> None:
        temporary.touch() if is_file else temporary.mkdir(exist_ok=True)

    def refuse() -> None:
        raise UsageError(f"Another process is making {path}: wait for it, or choose another name.")

    with write_errors_explained(path.parent, "choose another place"), lock(temporary, refuse, make=make):
        clear(temporary)
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            clear(temporary)
            temporary.unlink() if is_file else temporary.rmdir()
            raise


def clear(path: Path) -> None:
    """Empty a directory or file."""
    if path.is_dir():
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    else:
        os.truncate(path, 0)
