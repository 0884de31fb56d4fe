"""Detects what replaces a model's file: Git LFS pointers, and web pages sent by proxies."""

from __future__ import annotations

from pathlib import Path

from tgis_server import failures
from tgis_server.host.regular_file import open_regular

BEGINNING_BYTES = 256  # enough to recognize a stand-in
POINTER = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


def refuse_stand_in(file: str | Path, beginning: bytes) -> None:
    """Explain a malformed file, judging by its first bytes.

    Raises:
        ModelError: it is a stand-in.
    """
    if beginning.startswith(POINTER):
        raise failures.LFS_POINTER.error(file=file, directory=Path(file).parent)
    if beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        raise failures.WEB_PAGE.error(file=file)


def read_beginning(file: Path) -> bytes:
    """The first bytes of a file; empty if it cannot be read, which is reported elsewhere."""
    try:
        with open_regular(file) as stream:
            return stream.read(BEGINNING_BYTES)
    except OSError:
        return b""
