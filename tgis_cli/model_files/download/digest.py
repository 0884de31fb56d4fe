"""Checksums as the hub states them: SHA-256 of large files, git's SHA-1 of small ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tgis_cli.model_files.cache.disk import Advance
from tgis_cli.model_files.cache.names import GIT_SHA1, SHA256

CHUNK_BYTES = 4 << 20


def start_digest(expected: str, size: int) -> Any:
    """The hash object for a digest like ``expected``; ``None`` if its kind is unknown."""
    if SHA256.fullmatch(expected):
        return hashlib.sha256()
    if GIT_SHA1.fullmatch(expected):
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return None


def has_digest(path: Path, expected: str, advance: Advance = lambda count: None) -> bool:
    """Whether a file's content has this digest; true if the digest's kind is unknown and cannot be computed.

    Args:
        advance: called with the size of each chunk read.
    """
    digest = start_digest(expected, path.stat().st_size)
    if digest is None:
        return True
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return bool(digest.hexdigest() == expected)
