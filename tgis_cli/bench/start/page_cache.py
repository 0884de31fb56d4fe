"""The model's files in the kernel's page cache: dropped before a cold start, and counted to see whether it was one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

PROT_READ, MAP_SHARED = 1, 1
MAP_FAILED = ctypes.c_void_p(-1).value


def list_files(model_dir: Path) -> list[Path]:
    """The files of a model; links of the cache lead to their contents."""
    return sorted({path.resolve() for path in model_dir.rglob("*") if path.is_file()})


def drop(files: Iterable[Path]) -> None:
    """Ask the kernel to forget the files' pages. It keeps those that are dirty or mapped by a running process."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def share_in_memory(files: Iterable[Path]) -> float | None:
    """The share of the files' pages that the kernel holds; ``None`` if it does not tell.

    It tells only about files that this user may write: of others, it would call all pages present.
    """
    held = total = 0
    for path in files:
        if not os.access(path, os.W_OK):
            return None
        found = find_pages(path)
        if found is None:
            return None
        held, total = held + sum(found), total + len(found)
    return held / total if total else 0.0


def find_pages(path: Path) -> bytes | None:
    """One byte per page of the file: 1 if it is in memory. ``None``: the kernel refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return b""
        address = libc.mmap(None, size, PROT_READ, MAP_SHARED, file.fileno(), 0)
    if address == MAP_FAILED:
        return None
    try:
        pages = ctypes.create_string_buffer(-(-size // os.sysconf("SC_PAGE_SIZE")))
        if libc.mincore(address, size, pages) != 0:
            return None
        return bytes(pages).translate(bytes(value & 1 for value in range(256)))
    finally:
        libc.munmap(address, size)
