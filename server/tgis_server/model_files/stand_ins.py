"""What a file holds instead of itself: what Git leaves of large files, and what proxies send in place of them."""

from __future__ import annotations

from pathlib import Path

from tgis_server import failures
from tgis_server.host.regular_file import open_regular

BEGINNING_BYTES = 256  # enough to tell
POINTER = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


def refuse_stand_in(file: str | Path, beginning: bytes) -> None:
    """Called where a file of a model is not what it should be, with its first bytes.

    Raises:
        ModelError: it is something else, which is named.
    """
    if beginning.startswith(POINTER):
        raise failures.LFS_POINTER.error(file=file, directory=Path(file).parent)
    if beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        raise failures.WEB_PAGE.error(file=file)


def read_beginning(file: Path) -> bytes:
    """The first bytes; none of a file that cannot be read, as that is told elsewhere."""
    try:
        with open_regular(file) as stream:
            return stream.read(BEGINNING_BYTES)
    except OSError:
        return b""
