"""Paged keys and values: an array of blocks for each layer. Block tables say which blocks a sequence uses.

A block of a layer is (block size, 2, KV heads, head dim): for each token its keys, then its values. One index writes a
token, one index gathers a block, and in gathered blocks each head's keys are a strided matrix.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from tgis_server.engines.native.ops.api import CacheShape


class PagedCache:
    """All blocks of one rank.

    Attention multiplies masked values by zero, and zero times NaN or infinity is NaN. So a row may read only its own
    values: padding repeats one of its blocks, and :meth:`clear` is called for blocks that are begun but not filled,
    because they may contain values of a former owner.
    """

    def __init__(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> None:
        self.block_size = shape.block_size
        self.num_heads = shape.heads.num_heads
        self.num_kv_heads = shape.heads.num_kv_heads
        block = (self.block_size, 2, self.num_kv_heads, shape.heads.head_dim)
        self.block_bytes = torch.Size(block).numel() * dtype.itemsize  # in one layer
        # A single tensor, so that a block can be cleared in all layers at once
        self._all = _zeros((shape.num_layers, shape.num_blocks, *block), dtype, device)
        self.layers = list(self._all.unbind())

    def clear(self, blocks: Tensor) -> None:
        """Set blocks (int64, on the device) to zero, in all layers."""
        if self._all.device.type != "cpu":
            self._all.index_fill_(1, blocks, 0)
            return
        for block in blocks.tolist():  # there are few; index_fill_ takes seven times as long
            self._all[:, block].zero_()


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On a CPU, fresh pages from the kernel: they are zero and take no memory until used."""
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = torch.Size(size).numel() * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes)
    return torch.frombuffer(pages, dtype=dtype).view(size)
