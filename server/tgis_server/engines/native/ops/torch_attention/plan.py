"""Which keys each token of a step sees, as index and mask tensors shared by all layers that attend alike.

A row of one token is padded to the blocks of the longest row in its group; a chunk stands alone. Groups are cut where
padding or memory would get out of hand. With a window, only the blocks that it can reach are gathered. The host decides
about numbers of blocks; block ids and positions it never sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.native.ops.api import AttentionModifiers, Heads, Rows
from tgis_server.engines.native.ops.torch_attention.bias import range_mask, score_mask
from tgis_server.engines.native.ops.torch_attention.cache import PagedCache
from tgis_server.engines.sampling.staging import Staging

MAX_PADDING = 1.25  # longest over shortest row of a group, in blocks: beyond, a group of its own is cheaper
FREE_PADDING_BLOCKS = 8  # differences that do not matter next to the cost of another call
MAX_GATHERED_BYTES = 128 << 20  # keys and values of one layer that are gathered at a time
MAX_MASK_ELEMENTS = 8 << 20  # queries * keys of one chunk's mask or scores, times heads where these differ
MAX_HELD_ELEMENTS = 32 << 20  # of all masks of chunks that a step keeps for its layers; further ones each layer makes
MIN_WINDOW_QUERIES = 64  # of a chunk at a time, however small the window


@dataclass(frozen=True, slots=True)
class DecodeView:
    """Rows of one query each and the cached keys they see.

    ``blocks`` are each row's blocks in order. ``mask`` hides what lies beyond a row's length or before its window.
    """

    start: int  # first token
    stop: int
    blocks: Tensor  # (rows * num_blocks,) int64
    mask: Tensor  # (rows, 1, 1, keys), or with a bias (rows, K, H / K, keys); in the dtype of the queries


@dataclass(frozen=True, slots=True)
class ChunkView:
    """Consecutive queries of one row and the keys they see.

    Either ``blocks`` says where they are cached, or they belong to tokens of this step. ``mask`` is ``None`` where all
    is seen, or all that plain causality allows.
    """

    start: int
    stop: int
    first_key: int  # token of the first, or its place in the gathered blocks
    stop_key: int
    blocks: Tensor | None  # (num_blocks,) int64
    # (1, 1, queries, keys), or with a bias (1, H, queries, keys); a function makes it where keeping it takes too much
    mask: Tensor | Callable[[], Tensor] | None


@dataclass(frozen=True, slots=True)
class Views:
    """What each token of a step attends to, for layers that attend alike."""

    decodes: tuple[DecodeView, ...]
    chunks: tuple[ChunkView, ...]


@dataclass(frozen=True, slots=True)
class TorchPlan:
    """The reference's plan of one step."""

    views: dict[AttentionModifiers, Views]
    places: Tensor | None  # (T,) int64: where each token's keys and values go, in a layer seen as (tokens, 2 K D)


class Chunk(NamedTuple):
    """A row of several tokens. ``table`` is ``None`` where its keys are those of its own tokens."""

    token: int
    start: int
    num_tokens: int
    num_keys: int
    table: Tensor | None


def order_singles(num_blocks: np.ndarray) -> np.ndarray | None:
    """An order in which neighbours can share a padded call: as given, or by length."""
    if not len(num_blocks) or num_blocks.max() <= _padding_limit(num_blocks.min()):
        return None
    return np.argsort(num_blocks, kind="stable")


def plan_rows(
    rows: Rows, cache: PagedCache, modifiers: Iterable[AttentionModifiers], dtype: torch.dtype, staging: Staging
) -> TorchPlan:
    """See ``Ops.plan``. Blocks that are begun and not filled are cleared."""
    modifiers = list(modifiers)
    views = _share(modifiers, Planner(rows, cache, dtype).views) if modifiers else {}
    if rows.is_cross:
        return TorchPlan(views, None)
    _clear_begun(rows, cache, staging)
    blocks = _blocks_of(rows, rows.token_slots, rows.positions // cache.block_size)
    return TorchPlan(views, blocks * cache.block_size + rows.positions % cache.block_size)


def plan_whole(
    lengths: Sequence[int],
    heads: Heads,
    modifiers: Iterable[AttentionModifiers],
    dtype: torch.dtype,
    device: torch.device,
) -> TorchPlan:
    """See ``Ops.plan_whole``."""
    pieces = ChunkPlanner(heads.num_heads, None, dtype, device)
    ends = np.cumsum(lengths).tolist()
    chunks = [Chunk(end - length, 0, length, length, None) for end, length in zip(ends, lengths, strict=True)]

    def views(kind: AttentionModifiers) -> Views:
        return Views((), tuple(view for chunk in chunks for view in pieces.views(chunk, kind)))

    return TorchPlan(_share(modifiers, views), None)


class Planner:
    """Views of one step's rows."""

    def __init__(self, rows: Rows, cache: PagedCache, dtype: torch.dtype) -> None:
        self._rows = rows
        self._cache = cache
        self._dtype = dtype
        self._device = rows.positions.device
        self._num_blocks = -(-rows.num_keys // cache.block_size)
        self._num_singles = int(np.argmax(np.append(rows.num_tokens, 2) > 1))
        slots, queries = rows.slots[: self._num_singles], rows.positions[: self._num_singles]
        self._row_keys = rows.lengths.index_select(0, slots) if rows.is_cross else queries + 1  # of rows of one token
        self._groups = list(self._cut(self._num_blocks[: self._num_singles].tolist()))
        self._pieces = ChunkPlanner(cache.num_heads, cache, dtype, self._device)
        self._chunks = self._make_chunks()

    def views(self, kind: AttentionModifiers) -> Views:
        return Views(
            tuple(view for start, stop in self._groups for view in self._decode_views(start, stop, kind)),
            tuple(view for chunk in self._chunks for view in self._pieces.views(chunk, kind)),
        )

    @staticmethod
    def _cut(num_blocks: list[int]) -> Iterator[tuple[int, int]]:
        """Ranges of rows that are worth padding to the longest of them."""
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
            is_own = num_keys == num_tokens and not rows.is_cross
            table = None if is_own else rows.tables.index_select(0, rows.slots[row : row + 1])[0]
            chunks.append(Chunk(token, start, num_tokens, num_keys, table))
            token += num_tokens
        return chunks

    def _decode_views(self, start: int, stop: int, kind: AttentionModifiers) -> Iterator[DecodeView]:
        rows, size = self._rows, self._cache.block_size
        row_keys = self._row_keys[start:stop]
        num_keys, last = row_keys, (row_keys - 1) // size  # the block with the row's last key
        num_blocks = self._num_blocks[start:stop]
        columns = keys = None
        if kind.window is not None:
            num_blocks = num_blocks - np.maximum(rows.num_keys[start:stop] - kind.window, 0) // size
            first = (row_keys - kind.window).clamp_(min=0) // size  # the first block that is seen
            columns = keys = first[:, None]
            num_keys = num_keys - first * size
        width = int(num_blocks.max())
        # Padding is masked, but NaN of another row would get through a mask: the row's own last block stands there.
        columns = _count(width, columns, self._device)
        blocks = _blocks_of(rows, rows.slots[start:stop, None], torch.minimum(columns, last[:, None]))
        if has_bias(kind):
            keys = _count(width * size, None if keys is None else keys * size, self._device)
            queries = rows.positions[start:stop, None, None]
            mask = score_mask(kind, keys.view(-1, 1, width * size), queries, row_keys[:, None, None], self._dtype)
            mask = mask.view(stop - start, self._cache.num_kv_heads, -1, width * size)
        else:
            mask = range_mask(kind.window, num_keys, width * size, self._dtype)
        # As many rows at a time as the memory for their keys allows
        blocks = blocks.view(stop - start, width)
        at_a_time = max(1, MAX_GATHERED_BYTES // (width * self._cache.block_bytes))
        for i in range(0, stop - start, at_a_time):
            piece = slice(i, min(i + at_a_time, stop - start))
            yield DecodeView(start + piece.start, start + piece.stop, blocks[piece].view(-1), mask[piece])


class ChunkPlanner:
    """Views of rows of several tokens. Without a cache, all keys are those of the step's tokens."""

    def __init__(self, num_heads: int, cache: PagedCache | None, dtype: torch.dtype, device: torch.device) -> None:
        self._num_heads = num_heads
        self._cache = cache
        self._dtype = dtype
        self._device = device
        self._num_held = 0  # elements of masks

    def views(self, chunk: Chunk, kind: AttentionModifiers) -> Iterator[ChunkView]:
        done = 0
        while done < chunk.num_tokens:
            queries = self._queries_at_a_time(chunk, done, kind)
            yield self._view(chunk, done, queries, kind)
            done += queries

    def _queries_at_a_time(self, chunk: Chunk, done: int, kind: AttentionModifiers) -> int:
        left = chunk.num_tokens - done
        if not (_needs_mask(chunk, left, kind) or needs_scores(kind)):
            return left
        if kind.window is not None:
            # Pieces not much longer than the window keep a long chunk from scoring keys that it cannot see.
            left = min(left, max(kind.window, MIN_WINDOW_QUERIES))
        first, stop = self._seen_keys(chunk, done, left, kind)
        per_query = (stop - first) * (self._num_heads if has_bias(kind) or needs_scores(kind) else 1)
        return max(1, min(left, MAX_MASK_ELEMENTS // per_query))

    def _seen_keys(self, chunk: Chunk, done: int, num_queries: int, kind: AttentionModifiers) -> tuple[int, int]:
        """Positions of the first key that the queries see, or of its block's first, and of the key behind the last."""
        position = chunk.start + done
        first, stop = 0, chunk.num_keys
        if kind.window is not None:
            first = max(0, position - kind.window + 1)
            stop = min(stop, position + num_queries + kind.window - 1)
        if kind.is_causal:
            stop = min(stop, position + num_queries)
        return first - first % self._cache.block_size if self._cache and chunk.table is not None else first, stop

    def _view(self, chunk: Chunk, done: int, num_queries: int, kind: AttentionModifiers) -> ChunkView:
        first, stop = self._seen_keys(chunk, done, num_queries, kind)
        position, token = chunk.start + done, chunk.token + done
        mask = self._mask(chunk, position, num_queries, first, stop, kind)
        if chunk.table is None or self._cache is None:
            return ChunkView(token, token + num_queries, chunk.token + first, chunk.token + stop, None, mask)
        size = self._cache.block_size
        blocks = chunk.table[first // size : -(-stop // size)]
        return ChunkView(token, token + num_queries, 0, stop - first, blocks, mask)

    def _mask(
        self, chunk: Chunk, position: int, num_queries: int, first: int, stop: int, kind: AttentionModifiers
    ) -> Tensor | Callable[[], Tensor] | None:
        """Of queries from ``position`` on and keys from ``first`` to ``stop``."""
        if not _needs_mask(chunk, num_queries, kind):
            return None

        def make() -> Tensor:
            keys = torch.arange(first, stop, device=self._device)[None]
            queries = torch.arange(position, position + num_queries, device=self._device)[:, None]
            return score_mask(kind, keys, queries, chunk.num_keys, self._dtype)[None]

        num_elements = num_queries * (stop - first) * (self._num_heads if has_bias(kind) else 1)
        if self._num_held + num_elements > MAX_HELD_ELEMENTS:
            return make
        self._num_held += num_elements
        return make()


def has_bias(kind: AttentionModifiers) -> bool:
    """Whether the mask is another one for each head."""
    return kind.alibi_slopes is not None or kind.relative_bias is not None


def needs_scores(kind: AttentionModifiers) -> bool:
    """Whether scores are changed in ways that torch's fused attention does not know."""
    return kind.soft_cap != 0.0 or kind.sinks is not None


def _needs_mask(chunk: Chunk, num_queries: int, kind: AttentionModifiers) -> bool:
    if has_bias(kind) or (kind.window is not None and chunk.num_keys > kind.window):
        return True
    is_square = chunk.table is None and num_queries == chunk.num_keys  # as plain causality needs it
    return kind.is_causal and (needs_scores(kind) or not is_square)


def _share(
    modifiers: Iterable[AttentionModifiers], make: Callable[[AttentionModifiers], Views]
) -> dict[AttentionModifiers, Views]:
    """Views by modifiers; those that differ in scale, soft cap or sinks alone have the same ones."""
    made: dict[tuple[object, ...], Views] = {}
    views = {}
    for kind in modifiers:
        key = (kind.is_causal, kind.window, id(kind.alibi_slopes), kind.relative_bias, needs_scores(kind))
        if key not in made:
            made[key] = make(kind)
        views[kind] = made[key]
    return views


def _padding_limit(blocks: int) -> float:
    return max(blocks * MAX_PADDING, blocks + FREE_PADDING_BLOCKS)


def _count(num: int, first: Tensor | None, device: torch.device) -> Tensor:
    """``num`` consecutive numbers from 0 or, per row, from ``first`` on."""
    numbers = torch.arange(num, device=device)
    return numbers if first is None else numbers + first


def _blocks_of(rows: Rows, slots: Tensor, columns: Tensor) -> Tensor:
    """Entries of the block tables, by broadcast slots and columns."""
    return rows.tables.view(-1).index_select(0, (slots * rows.tables.shape[1] + columns).view(-1))


def _clear_begun(rows: Rows, cache: PagedCache, staging: Staging) -> None:
    """What their former owners left in blocks that are begun and not filled would lie behind the rows' keys."""
    filled = rows.num_keys // cache.block_size
    begun = np.flatnonzero((rows.num_keys % cache.block_size != 0) & (rows.starts <= filled * cache.block_size))
    if len(begun):
        which, columns = staging.put_all([begun, filled[begun]])
        cache.clear(_blocks_of(rows, rows.slots.index_select(0, which), columns))
