"""Paged keys and values: per layer an array of blocks, which sequences hold through their block tables.

A block of a layer is (2, kv heads, block size, head dim): keys, then values. Head-major, so that a gather of blocks
yields every head's keys as one contiguous matrix.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import torch
from torch import Tensor


class KvCache:
    """All blocks of one rank.

    Attention multiplies what a mask hides by zero, and zero times NaN or infinity is NaN. So what a row's attention
    reads must be the row's own: padding repeats the row's last block, and :meth:`clear` is called for a block that is
    begun but not filled, as its end may hold what its former owner left.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.num_kv_heads = num_kv_heads
        self.block_size = block_size
        self.head_dim = head_dim
        shape = (num_layers, num_blocks, 2, num_kv_heads, block_size, head_dim)
        self._all = _zeros(shape, dtype, device)  # in one piece, so that a block of all layers is cleared at once
        self.layers = list(self._all.unbind())

    def clear(self, blocks: Iterable[int]) -> None:
        """Set blocks to zero, in all layers."""
        for block in blocks:  # few; filling them by index takes seven times as long
            self._all[:, block].zero_()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory on a CPU until a block is used: fresh pages of the kernel are zero already."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
