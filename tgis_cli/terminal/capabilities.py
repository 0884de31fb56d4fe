"""What a terminal can do, decided in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO


def is_capable(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the stream is a terminal that understands escape sequences."""
    return stream.isatty() and environ.get("TERM", "") not in ("", "dumb")
