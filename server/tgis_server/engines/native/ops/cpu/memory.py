"""Memory for packed weights, and for keys and values."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from dataclasses import dataclass

import torch

from tgis_server.engines.native.ops.cpu import interface

HUGE_PAGE = 2 << 20
CHUNK = 64 << 20


@dataclass(frozen=True, slots=True, eq=False)
class CpuWeight:
    """A packed weight: see ``csrc/linear.h``."""

    address: int
    num_outputs: int
    num_inputs: int
    memory: mmap.mmap  # what holds it


class WeightMemory:
    """Memory in huge pages, whose weights are read with fewer misses of the address cache."""

    def __init__(self) -> None:
        self._chunk = mmap.mmap(-1, HUGE_PAGE)
        self._used = HUGE_PAGE

    def take(self, num_bytes: int) -> tuple[int, mmap.mmap]:
        num_bytes = -(-num_bytes // 64) * 64
        if self._used + num_bytes > len(self._chunk):
            self._chunk = map_huge(max(CHUNK, -(-num_bytes // HUGE_PAGE) * HUGE_PAGE))
            self._used = -address_of(self._chunk) % HUGE_PAGE
        start = self._used
        self._used += num_bytes
        return address_of(self._chunk) + start, self._chunk


def map_huge(num_bytes: int) -> mmap.mmap:
    """Zero bytes that begin within a huge page of the address; the kernel provides pages when they are used."""
    pages = mmap.mmap(-1, num_bytes + HUGE_PAGE)
    with contextlib.suppress(OSError):  # this kernel was built without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def address_of(pages: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))


class CpuCache:
    """Paged keys and values: for each layer, an array of blocks as in ``csrc/cache.h``."""

    def __init__(
        self, num_layers: int, num_blocks: int, block_bytes: int, shape: interface.CacheShape, dtype: torch.dtype
    ) -> None:
        self.shape = shape
        self.block_size = shape.block_size
        # Fresh pages from the kernel are zero, and take no memory until they are used.
        pages = mmap.mmap(-1, num_layers * num_blocks * block_bytes)
        self.layers = list(torch.frombuffer(pages, dtype=dtype).view(num_layers, num_blocks, -1).unbind())
