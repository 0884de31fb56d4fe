"""Checksums of content as the hub states them: SHA-256 of large files, git's SHA-1 of small ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tgis_cli.model_files.cache.names import GIT_SHA1, SHA256

CHUNK_BYTES = 4 << 20


def start_digest(expected: str, size: int) -> Any:
    """A hash object that takes the content and then gives ``expected``; ``None`` for a digest of no known kind."""
    if SHA256.fullmatch(expected):
        return hashlib.sha256()
    if GIT_SHA1.fullmatch(expected):
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return None


def has_digest(path: Path, expected: str, on_bytes: Callable[[int], None] = lambda count: None) -> bool:
    """Read a whole file and compare; true for a digest of no known kind, which nothing can be compared with.

    Args:
        on_bytes: told the size of each part that has been read.
    """
    digest = start_digest(expected, path.stat().st_size)
    if digest is None:
        return True
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return bool(digest.hexdigest() == expected)
