"""Which cached keys each token of a step sees, as index and mask tensors shared by all layers of one window size.

A row of one token is padded to the blocks of the longest row in its group; a chunk stands alone. Groups are cut where
padding or memory would get out of hand. With a window, only the blocks that it can reach are gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.native.kv_cache import KvCache
from tgis_server.engines.native.ops.api import AttentionPlan, ChunkView, DecodeView
from tgis_server.engines.sampling.staging import Staging

MAX_PADDING = 1.25  # longest over shortest row of a group, in blocks: beyond, a group of its own is cheaper
FREE_PADDING_BLOCKS = 8  # differences that do not matter next to the cost of another call
MAX_GATHERED_BYTES = 128 << 20  # keys and values of one layer that are gathered at a time
MAX_MASK_ELEMENTS = 8 << 20  # queries * keys of one chunk's mask


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Consecutive tokens of one sequence in a step."""

    row: int  # of the plan
    start: int  # position of the first
    num_tokens: int
    table: np.ndarray  # block table

    @property
    def num_keys(self) -> int:
        return self.start + self.num_tokens


class AttentionPlanner:
    """Plans for one model on one device."""

    def __init__(self, windows: Sequence[int | None], cache: KvCache, dtype: torch.dtype, staging: Staging) -> None:
        self._windows = sorted(set(windows), key=lambda window: window or 0)
        self._block_size = cache.block_size
        self._num_kv_heads = cache.num_kv_heads
        self._block_bytes = 2 * cache.num_kv_heads * cache.block_size * cache.head_dim * dtype.itemsize
        self._dtype = dtype
        self._staging = staging
        device = staging.device
        # Rows of the cache, seen as (-1, block size, head dim): first keys of each KV head, then values.
        self._heads = torch.arange(2 * cache.num_kv_heads, device=device)

    def cache_rows(self, places: Tensor) -> Tensor:
        """Where each token's keys and values go.

        Args:
            places: (tokens,) index of head 0's key in the cache seen as (-1, head dim).

        Returns:
            (tokens * 2 * kv heads,)
        """
        return (places[:, None] + self._heads * self._block_size).view(-1)

    def order_singles(self, rows: list[int], starts: list[int]) -> list[int]:
        """Rows of one token, in an order in which neighbours can share a padded call: as given, or by length."""
        blocks = [self._num_blocks(start + 1) for start in starts]
        if not rows or max(blocks) <= self._padding_limit(min(blocks)):
            return rows
        return [row for _, row in sorted(zip(blocks, rows, strict=True))]

    def plan(self, rows: list[TokenRow], num_singles: int) -> dict[int | None, AttentionPlan]:
        """Plans by window size.

        Args:
            rows: in the order of the step's tokens: rows of one token first, ordered by :meth:`order_singles`.
            num_singles: how many rows of one token there are.
        """
        groups = list(self._groups(rows[:num_singles]))
        plans = {}
        for window in self._windows:
            decodes = tuple(self._decode_view(start, rows[start:stop], window) for start, stop in groups)
            chunks: list[ChunkView] = []
            token = num_singles
            for row in rows[num_singles:]:
                chunks.extend(self._chunk_views(token, row, window))
                token += row.num_tokens
            plans[window] = AttentionPlan(decodes, tuple(chunks))
        return plans

    def _num_blocks(self, num_keys: int) -> int:
        return -(-num_keys // self._block_size)

    @staticmethod
    def _padding_limit(blocks: int) -> float:
        return max(blocks * MAX_PADDING, blocks + FREE_PADDING_BLOCKS)

    def _groups(self, rows: list[TokenRow]) -> Iterator[tuple[int, int]]:
        """Ranges of rows whose padded keys are worth one call and fit the memory for it."""
        start, shortest, longest = 0, 0, 0
        for i, row in enumerate(rows):
            blocks = self._num_blocks(row.num_keys)
            low, high = (min(shortest, blocks), max(longest, blocks)) if i > start else (blocks, blocks)
            is_too_large = (i + 1 - start) * high * self._block_bytes > MAX_GATHERED_BYTES
            if i > start and (high > self._padding_limit(low) or is_too_large):
                yield start, i
                start, low, high = i, blocks, blocks
            shortest, longest = low, high
        if rows:
            yield start, len(rows)

    def _first_block(self, position: int, window: int | None) -> int:
        """The block with the first key that a query at ``position`` sees."""
        return 0 if window is None else max(0, position - window + 1) // self._block_size

    def _decode_view(self, start: int, rows: list[TokenRow], window: int | None) -> DecodeView:
        first = [self._first_block(row.start, window) for row in rows]
        width = max(self._num_blocks(row.num_keys) - block for row, block in zip(rows, first, strict=True))
        table = np.zeros((len(rows), width), dtype=np.int64)
        for i, (row, block) in enumerate(zip(rows, first, strict=True)):
            used = row.table[block : self._num_blocks(row.num_keys)]
            table[i, : len(used)] = used
            table[i, len(used) :] = used[-1]  # padding: masked, but NaN of another row would get through a mask
        # Positions relative to the first gathered key: those from low on and below high are seen.
        offsets = np.array(first, dtype=np.int64) * self._block_size
        high = np.array([row.num_keys for row in rows], dtype=np.int64) - offsets
        low = np.zeros_like(high) if window is None else np.maximum(high - window, 0)
        table_t, low_t, high_t = self._staging.put_all([table, low[:, None], high[:, None]])
        keys = torch.arange(width * self._block_size, device=self._staging.device)
        is_seen = keys < high_t if window is None else (keys < high_t) & (keys >= low_t)
        # (2 heads, rows, blocks) -> keys of all rows, then values; within a row by head, then by block
        blocks = table_t[None, :, None, :] * (2 * self._num_kv_heads) + self._heads.view(2, 1, -1, 1)
        return DecodeView(start, start + len(rows), blocks.reshape(-1), self._as_mask(is_seen)[:, None, None, :])

    def _chunk_views(self, token: int, row: TokenRow, window: int | None) -> Iterator[ChunkView]:
        is_fresh = row.start == 0
        if is_fresh and (window is None or row.num_tokens <= window):
            yield ChunkView(token, token + row.num_tokens, None, row.num_tokens, None)
            return
        done = 0
        while done < row.num_tokens:
            queries = self._queries_at_a_time(row, done, window)
            yield self._chunk_view(token + done, row, row.start + done, queries, window)
            done += queries

    def _queries_at_a_time(self, row: TokenRow, done: int, window: int | None) -> int:
        left = row.num_tokens - done
        if window is not None:
            # Pieces not much longer than the window keep a long chunk from scoring keys that it cannot see.
            left = min(left, max(window, 4 * self._block_size))
        keys = row.start + done + left - self._first_block(row.start + done, window) * self._block_size
        return max(1, min(left, MAX_MASK_ELEMENTS // keys))

    def _chunk_view(self, token: int, row: TokenRow, position: int, num_queries: int, window: int | None) -> ChunkView:
        first, stop = self._first_block(position, window), position + num_queries
        table = row.table[first : self._num_blocks(stop)]
        num_keys = stop - first * self._block_size
        device = self._staging.device
        keys = torch.arange(first * self._block_size, stop, device=device)
        queries = torch.arange(position, stop, device=device)[:, None]
        is_seen = keys <= queries if window is None else (keys <= queries) & (keys > queries - window)
        table_t = self._staging.put(table, torch.int64)
        blocks = (table_t * (2 * self._num_kv_heads) + self._heads[:, None]).view(-1)
        return ChunkView(token, token + num_queries, blocks, num_keys, self._as_mask(is_seen))

    def _as_mask(self, is_seen: Tensor) -> Tensor:
        mask = torch.zeros(is_seen.shape, dtype=self._dtype, device=is_seen.device)
        return mask.masked_fill_(~is_seen, float("-inf"))
