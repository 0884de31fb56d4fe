"""Masks of allowed tokens, as one array."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def pack_masks(masks: Mapping[int, bytes], vocab_size: int) -> np.ndarray:
    """(masks, bytes) uint8, in the mapping's order: bit i % 8 of byte i // 8 is for id i. Missing bytes are 0."""
    size = -(-vocab_size // 8)
    joined = bytearray().join(mask[:size].ljust(size, b"\0") for mask in masks.values())
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(masks), size)
