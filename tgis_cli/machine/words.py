"""Counts in sentences."""


def count(number: int, noun: str) -> str:
    """``no GPUs``, ``1 GPU``, ``2 GPUs``."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
