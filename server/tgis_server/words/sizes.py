"""Byte counts for people to read."""

from __future__ import annotations

GIB = 1 << 30


def format_bytes(count: int) -> str:
    """``1.5 GiB``, ``12 MiB``, ``3 KiB``, ``5 B``."""
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    if count >= 1 << 20:
        return f"{count / (1 << 20):.0f} MiB"
    return f"{count / 1024:.0f} KiB" if count >= 1024 else f"{count} B"
