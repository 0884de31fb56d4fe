"""Counts in sentences."""

from tgis_server.words.sizes import format_count


def count(number: int, noun: str) -> str:
    """``no GPUs``, ``1 GPU``, ``2 GPUs``."""
    return format_count(number, noun) if number else f"no {noun}s"
