"""Counts for people to read, of bytes and of other things."""

from __future__ import annotations

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


def format_bytes(count: int) -> str:
    """``2.0 TiB``, ``1.5 GiB``, ``12 MiB``, ``3 KiB``, ``5 B``."""
    if count >= TIB:
        return f"{count / TIB:.1f} TiB"
    if count >= GIB:
        return f"{count / GIB:.1f} GiB"
    if count >= 1 << 20:
        return f"{count / (1 << 20):.0f} MiB"
    return f"{count / 1024:.0f} KiB" if count >= 1024 else f"{count} B"


def format_bytes_for_option(count: int) -> str:
    """``12.1MiB``: this many bytes or a few more, as the value of an option."""
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{-(-10 * count // size) / 10:g}{unit}"
    return str(count)


def write_bytes_for_option(count: int) -> str:
    """``4GiB``, ``96MiB``, ``1000``: exactly this many bytes, as the value of an option."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", 1 << 10)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def format_count(number: int, noun: str) -> str:
    """``1 token``, ``2,048 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
