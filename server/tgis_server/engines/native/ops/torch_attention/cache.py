"""Paged keys and values: per layer an array of blocks, which sequences hold through their block tables.

A block of a layer is (block size, 2, kv heads, head dim): per token its keys, then its values. So one index writes a
token and one gathers a block, and gathered blocks are a sequence, of which each head's keys are a strided matrix.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from tgis_server.engines.native.ops.api import CacheShape


class PagedCache:
    """All blocks of one rank.

    Attention multiplies what a mask hides by zero, and zero times NaN or infinity is NaN. So what a row's attention
    reads must be the row's own: padding repeats one of the row's blocks, and :meth:`clear` is called for a block that
    is begun but not filled, as its end may hold what its former owner left.
    """

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        self.block_size = shape.block_size
        self.num_heads = shape.heads.num_heads
        self.num_kv_heads = shape.heads.num_kv_heads
        block = (self.block_size, 2, self.num_kv_heads, shape.heads.head_dim)
        self.block_bytes = torch.Size(block).numel() * dtype.itemsize  # of a layer
        # In one piece, so that a block of all layers is cleared at once
        self._all = _zeros((shape.num_layers, shape.num_blocks, *block), dtype, device)
        self.layers = list(self._all.unbind())

    def clear(self, blocks: Tensor) -> None:
        """Set blocks (int64, on the device) to zero, in all layers."""
        if self._all.device.type != "cpu":
            self._all.index_fill_(1, blocks, 0)
            return
        for block in blocks.tolist():  # few; filling them by index takes seven times as long
            self._all[:, block].zero_()


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory on a CPU until a block is used: fresh pages of the kernel are zero already."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = torch.Size(size).numel() * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes)
    return torch.frombuffer(pages, dtype=dtype).view(size)
