"""The keys that each token of a step sees, as index and mask tensors shared by all layers that attend alike.

Rows of one token form groups, padded to the blocks of the longest row; each chunk is computed alone. Groups are split
to limit padding and memory. With a window, only the blocks within its reach are gathered. The host plans with numbers
of blocks; block ids and positions stay on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.native.ops.api import AttentionModifiers, Heads, StepRows
from tgis_server.engines.native.ops.torch_attention.bias import range_mask, score_mask
from tgis_server.engines.native.ops.torch_attention.cache import PagedCache
from tgis_server.engines.sampling.staging import Staging

MAX_PADDING = 1.25  # longest / shortest row of a group, in blocks; beyond this, a separate group is cheaper
FREE_PADDING_BLOCKS = 8  # extra blocks that cost less than another call
MAX_GATHERED_BYTES = 128 << 20  # keys and values of one layer gathered at once
MAX_MASK_ELEMENTS = 8 << 20  # queries * keys of one chunk's mask or scores, times heads if each has its own
MAX_HELD_ELEMENTS = 32 << 20  # size of the chunk masks that a step keeps for all layers; layers make the rest again
MIN_WINDOW_QUERIES = 64  # queries of a chunk at once, however small the window


@dataclass(frozen=True, slots=True)
class DecodeView:
    """Rows of one query each and the cached keys that they see.

    ``blocks`` are each row's blocks in order. ``mask`` hides keys beyond a row's length or before its window.
    """

    start: int  # first token
    stop: int
    blocks: Tensor  # (rows * num_blocks,) int64
    mask: Tensor  # (rows, 1, 1, keys), or with a bias (rows, K, H / K, keys); in the dtype of the queries


@dataclass(frozen=True, slots=True)
class ChunkView:
    """Consecutive queries of one row and the keys that they see.

    The keys are cached in ``blocks``, or belong to tokens of this step. ``mask`` is ``None`` if nothing is hidden, or
    only what plain causality hides.
    """

    start: int
    stop: int
    first_key: int  # a token of the step, or a place in the gathered blocks
    stop_key: int
    blocks: Tensor | None  # (num_blocks,) int64
    # (1, 1, queries, keys), or with a bias (1, H, queries, keys); a function if keeping the mask takes too much memory
    mask: Tensor | Callable[[], Tensor] | None


@dataclass(frozen=True, slots=True)
class Views:
    """The keys of all tokens of a step, for layers that attend alike."""

    decodes: tuple[DecodeView, ...]
    chunks: tuple[ChunkView, ...]


@dataclass(frozen=True, slots=True)
class TorchPlan:
    """The reference's plan of one step."""

    views: dict[AttentionModifiers, Views]
    places: Tensor | None  # (T,) int64: rows for the tokens' keys and values in a layer seen as (tokens, 2 K D)


class Chunk(NamedTuple):
    """A row of several tokens. ``table`` is ``None`` if the row's keys are those of its own tokens."""

    token: int  # first token, in the step
    start: int  # its position
    num_tokens: int
    num_keys: int
    table: Tensor | None


def order_singles(num_blocks: np.ndarray) -> np.ndarray | None:
    """An order in which neighbours can share a padded call: by length, or ``None`` for the given order."""
    if not len(num_blocks) or num_blocks.max() <= _padding_limit(num_blocks.min()):
        return None
    return np.argsort(num_blocks, kind="stable")


def plan_attention(
    rows: StepRows, cache: PagedCache, all_modifiers: Iterable[AttentionModifiers], dtype: torch.dtype, staging: Staging
) -> TorchPlan:
    """See ``Ops.plan_attention``. Clears newly begun blocks that the step does not fill."""
    all_modifiers = list(all_modifiers)
    views = _make_views(all_modifiers, StepPlanner(rows, cache, dtype).views) if all_modifiers else {}
    if rows.encoder_lengths is not None:
        return TorchPlan(views, None)
    _clear_begun(rows, cache, staging)
    blocks = _blocks_of(rows, rows.token_slots, rows.positions // cache.block_size)
    return TorchPlan(views, blocks * cache.block_size + rows.positions % cache.block_size)


def plan_uncached_attention(
    lengths: Sequence[int],
    heads: Heads,
    all_modifiers: Iterable[AttentionModifiers],
    dtype: torch.dtype,
    device: torch.device,
) -> TorchPlan:
    """See ``Ops.plan_uncached_attention``."""
    planner = ChunkPlanner(heads.num_heads, None, dtype, device)
    ends = np.cumsum(lengths).tolist()
    chunks = [Chunk(end - length, 0, length, length, None) for end, length in zip(ends, lengths, strict=True)]

    def views(modifiers: AttentionModifiers) -> Views:
        return Views((), tuple(view for chunk in chunks for view in planner.views(chunk, modifiers)))

    return TorchPlan(_make_views(all_modifiers, views), None)


class StepPlanner:
    """Makes the views of one step's rows."""

    def __init__(self, rows: StepRows, cache: PagedCache, dtype: torch.dtype) -> None:
        self._rows = rows
        self._cache = cache
        self._dtype = dtype
        self._device = rows.positions.device
        self._num_blocks = -(-rows.num_keys // cache.block_size)
        self._num_singles = int(np.argmax(np.append(rows.num_tokens, 2) > 1))
        slots, queries = rows.slots[: self._num_singles], rows.positions[: self._num_singles]
        lengths = rows.encoder_lengths
        self._row_keys = queries + 1 if lengths is None else lengths.index_select(0, slots)  # (singles,)
        self._groups = list(self._cut(self._num_blocks[: self._num_singles].tolist()))
        self._chunk_planner = ChunkPlanner(cache.num_heads, cache, dtype, self._device)
        self._chunks = self._make_chunks()

    def views(self, modifiers: AttentionModifiers) -> Views:
        return Views(
            tuple(view for start, stop in self._groups for view in self._decode_views(start, stop, modifiers)),
            tuple(view for chunk in self._chunks for view in self._chunk_planner.views(chunk, modifiers)),
        )

    @staticmethod
    def _cut(num_blocks: list[int]) -> Iterator[tuple[int, int]]:
        """Ranges of rows, each padded to the length of its longest row."""
        if not num_blocks or max(num_blocks) <= _padding_limit(min(num_blocks)):
            yield from [(0, len(num_blocks))] if num_blocks else []
            return
        start, shortest, longest = 0, num_blocks[0], num_blocks[0]
        for i, blocks in enumerate(num_blocks):
            shortest, longest = min(shortest, blocks), max(longest, blocks)
            if longest > _padding_limit(shortest):
                yield start, i
                start, shortest, longest = i, blocks, blocks
        yield start, len(num_blocks)

    def _make_chunks(self) -> list[Chunk]:
        rows, chunks = self._rows, []
        token = self._num_singles
        for row in range(self._num_singles, len(rows.num_tokens)):
            start, num_tokens, num_keys = int(rows.starts[row]), int(rows.num_tokens[row]), int(rows.num_keys[row])
            is_own = num_keys == num_tokens and rows.encoder_lengths is None
            table = None if is_own else rows.tables.index_select(0, rows.slots[row : row + 1])[0]
            chunks.append(Chunk(token, start, num_tokens, num_keys, table))
            token += num_tokens
        return chunks

    def _decode_views(self, start: int, stop: int, modifiers: AttentionModifiers) -> Iterator[DecodeView]:
        rows, size = self._rows, self._cache.block_size
        row_keys = self._row_keys[start:stop]
        num_keys, last = row_keys, (row_keys - 1) // size  # block of the row's last key
        num_blocks = self._num_blocks[start:stop]
        columns = keys = None
        if modifiers.window is not None:
            num_blocks = num_blocks - np.maximum(rows.num_keys[start:stop] - modifiers.window, 0) // size
            first = (row_keys - modifiers.window).clamp_(min=0) // size  # first block that is seen
            columns = keys = first[:, None]
            num_keys = num_keys - first * size
        width = int(num_blocks.max())
        # A mask does not keep out another row's NaN: pad with the row's own last block.
        columns = _count(width, columns, self._device)
        blocks = _blocks_of(rows, rows.slots[start:stop, None], torch.minimum(columns, last[:, None]))
        if has_bias(modifiers):
            keys = _count(width * size, None if keys is None else keys * size, self._device)
            queries = rows.positions[start:stop, None, None]
            mask = score_mask(modifiers, keys.view(-1, 1, width * size), queries, row_keys[:, None, None], self._dtype)
            mask = mask.view(stop - start, self._cache.num_kv_heads, -1, width * size)
        else:
            mask = range_mask(modifiers.window, num_keys, width * size, self._dtype)
        # As many rows at once as the memory for their keys allows
        blocks = blocks.view(stop - start, width)
        per_view = max(1, MAX_GATHERED_BYTES // (width * self._cache.block_bytes))
        for i in range(0, stop - start, per_view):
            own = slice(i, min(i + per_view, stop - start))
            yield DecodeView(start + own.start, start + own.stop, blocks[own].view(-1), mask[own])


class ChunkPlanner:
    """Makes the views of chunks. Without a cache, all keys are those of the step's tokens."""

    def __init__(self, num_heads: int, cache: PagedCache | None, dtype: torch.dtype, device: torch.device) -> None:
        self._num_heads = num_heads
        self._cache = cache
        self._dtype = dtype
        self._device = device
        self._num_held = 0  # elements of kept masks

    def views(self, chunk: Chunk, modifiers: AttentionModifiers) -> Iterator[ChunkView]:
        done = 0
        while done < chunk.num_tokens:
            queries = self._queries_per_view(chunk, done, modifiers)
            yield self._view(chunk, done, queries, modifiers)
            done += queries

    def _queries_per_view(self, chunk: Chunk, done: int, modifiers: AttentionModifiers) -> int:
        left = chunk.num_tokens - done
        if not (_needs_mask(chunk, left, modifiers) or needs_scores(modifiers)):
            return left
        if modifiers.window is not None:
            # Views not much longer than the window keep a long chunk from scoring keys that it cannot see.
            left = min(left, max(modifiers.window, MIN_WINDOW_QUERIES))
        first, stop = self._seen_keys(chunk, done, left, modifiers)
        per_query = (stop - first) * (self._num_heads if has_bias(modifiers) or needs_scores(modifiers) else 1)
        return max(1, min(left, MAX_MASK_ELEMENTS // per_query))

    def _seen_keys(self, chunk: Chunk, done: int, num_queries: int, modifiers: AttentionModifiers) -> tuple[int, int]:
        """Range of the keys that the queries see; if the keys are cached, it begins at the start of a block."""
        position = chunk.start + done
        first, stop = 0, chunk.num_keys
        if modifiers.window is not None:
            first = max(0, position - modifiers.window + 1)
            stop = min(stop, position + num_queries + modifiers.window - 1)
        if modifiers.is_causal:
            stop = min(stop, position + num_queries)
        return first - first % self._cache.block_size if self._cache and chunk.table is not None else first, stop

    def _view(self, chunk: Chunk, done: int, num_queries: int, modifiers: AttentionModifiers) -> ChunkView:
        first, stop = self._seen_keys(chunk, done, num_queries, modifiers)
        position, token = chunk.start + done, chunk.token + done
        mask = self._mask(chunk, position, num_queries, first, stop, modifiers)
        if chunk.table is None or self._cache is None:
            return ChunkView(token, token + num_queries, chunk.token + first, chunk.token + stop, None, mask)
        size = self._cache.block_size
        blocks = chunk.table[first // size : -(-stop // size)]
        return ChunkView(token, token + num_queries, 0, stop - first, blocks, mask)

    def _mask(
        self, chunk: Chunk, position: int, num_queries: int, first: int, stop: int, modifiers: AttentionModifiers
    ) -> Tensor | Callable[[], Tensor] | None:
        """The mask for ``num_queries`` queries, the first at ``position``, and for keys from ``first`` to ``stop``."""
        if not _needs_mask(chunk, num_queries, modifiers):
            return None

        def make() -> Tensor:
            keys = torch.arange(first, stop, device=self._device)[None]
            queries = torch.arange(position, position + num_queries, device=self._device)[:, None]
            return score_mask(modifiers, keys, queries, chunk.num_keys, self._dtype)[None]

        num_elements = num_queries * (stop - first) * (self._num_heads if has_bias(modifiers) else 1)
        if self._num_held + num_elements > MAX_HELD_ELEMENTS:
            return make
        self._num_held += num_elements
        return make()


def has_bias(modifiers: AttentionModifiers) -> bool:
    """Whether each head has its own mask."""
    return modifiers.alibi_slopes is not None or modifiers.relative_bias is not None


def needs_scores(modifiers: AttentionModifiers) -> bool:
    """Whether scores are changed in ways that torch's fused attention does not support."""
    return modifiers.soft_cap != 0.0 or modifiers.sinks is not None


def _needs_mask(chunk: Chunk, num_queries: int, modifiers: AttentionModifiers) -> bool:
    if has_bias(modifiers) or (modifiers.window is not None and chunk.num_keys > modifiers.window):
        return True
    is_square = chunk.table is None and num_queries == chunk.num_keys  # as the kernels' own causal mask requires
    return modifiers.is_causal and (needs_scores(modifiers) or not is_square)


def _make_views(
    all_modifiers: Iterable[AttentionModifiers], make: Callable[[AttentionModifiers], Views]
) -> dict[AttentionModifiers, Views]:
    """Views by modifiers, shared by modifiers that differ only in scale, soft cap or sinks."""
    made: dict[tuple[object, ...], Views] = {}
    views = {}
    for modifiers in all_modifiers:
        key = (
            modifiers.is_causal,
            modifiers.window,
            id(modifiers.alibi_slopes),
            modifiers.relative_bias,
            needs_scores(modifiers),
        )
        if key not in made:
            made[key] = make(modifiers)
        views[modifiers] = made[key]
    return views


def _padding_limit(blocks: int) -> float:
    return max(blocks * MAX_PADDING, blocks + FREE_PADDING_BLOCKS)


def _count(num: int, first: Tensor | None, device: torch.device) -> Tensor:
    """``num`` consecutive numbers, starting at 0 or, in each row, at ``first``."""
    numbers = torch.arange(num, device=device)
    return numbers if first is None else numbers + first


def _blocks_of(rows: StepRows, slots: Tensor, columns: Tensor) -> Tensor:
    """Block table entries at broadcast slots and columns."""
    return rows.tables.view(-1).index_select(0, (slots * rows.tables.shape[1] + columns).view(-1))


def _clear_begun(rows: StepRows, cache: PagedCache, staging: Staging) -> None:
    """Clear blocks that the step begins but does not fill; otherwise former owners' values would follow the keys."""
    filled = rows.num_keys // cache.block_size
    begun = np.flatnonzero((rows.num_keys % cache.block_size != 0) & (rows.starts <= filled * cache.block_size))
    if len(begun):
        which, columns = staging.put_all([begun, filled[begun]])
        cache.clear(_blocks_of(rows, rows.slots.index_select(0, which), columns))
