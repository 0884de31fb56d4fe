"""Which slices of which checkpoint tensors make up each of our parameters, on each rank. No torch.

A parameter is a stack of pieces along its rows (``qkv`` = queries, keys, values). A piece is a range of rows of one
checkpoint tensor and a rule that says how shards share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tgis_server.engines.native.spec import DecoderSpec


class Split(Enum):
    """How the shards share a piece."""

    COPY = "copy"  # every rank holds all of it
    ROWS = "rows"  # outputs are divided; the rank's rows are one contiguous range
    KV_HEADS = "kv heads"  # like ROWS by heads, but a head is copied to several ranks where heads are fewer than ranks
    COLUMNS = "columns"  # inputs are divided; the ranks' products are summed
    FIRST = "first"  # rank 0 holds all of it, the others nothing: the bias of a sum over ranks
    VOCAB = "vocab"  # like ROWS, padded with zero rows to a multiple of the number of shards


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``start`` to ``start + rows`` of a checkpoint tensor."""

    tensor: str
    rows: int
    columns: int  # 0: the tensor has one dimension
    split: Split
    start: int = 0
    tensor_rows: int = 0  # rows of the whole tensor, where it holds more than this piece

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        rows = self.tensor_rows or self.rows
        return (rows, self.columns) if self.columns else (rows,)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of our tensors: pieces on top of each other."""

    name: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class RankSlice:
    """The part of a piece that one rank reads; empty where ``rows`` is an empty range."""

    rows: range  # of the checkpoint tensor
    columns: range | None  # None: the tensor has one dimension
    padded_rows: int  # rows of the result; those beyond ``rows`` are zero

    @property
    def num_elements(self) -> int:
        return self.padded_rows * (1 if self.columns is None else len(self.columns))


def vocab_rows(vocab_size: int, rank: int, num_shard: int) -> range:
    """Token ids whose embedding and logit this rank holds; the last ranks may hold fewer, or none."""
    per_rank = padded_vocab_rows(vocab_size, num_shard)
    return range(min(rank * per_rank, vocab_size), min((rank + 1) * per_rank, vocab_size))


def padded_vocab_rows(vocab_size: int, num_shard: int) -> int:
    """Rows of the vocabulary on each rank, padding included."""
    return -(-vocab_size // num_shard)


def slice_of(piece: Piece, spec: DecoderSpec, rank: int, num_shard: int) -> RankSlice:
    """What ``rank`` reads of ``piece``."""
    rows, columns = range(piece.rows), range(piece.columns)
    padded_rows = None
    match piece.split:
        case Split.ROWS:
            rows = _share(piece.rows, rank, num_shard)
        case Split.KV_HEADS:
            head_rows = piece.rows // spec.num_kv_heads
            heads = kv_heads_of(spec, rank, num_shard)
            rows = range(heads.start * head_rows, heads.stop * head_rows)
        case Split.COLUMNS:
            columns = _share(piece.columns, rank, num_shard)
        case Split.FIRST:
            rows = rows if rank == 0 else range(0)
        case Split.VOCAB:
            rows = vocab_rows(piece.rows, rank, num_shard)
            padded_rows = padded_vocab_rows(piece.rows, num_shard)
        case Split.COPY:
            pass
    return RankSlice(
        rows=range(rows.start + piece.start, rows.stop + piece.start),
        columns=columns if piece.columns else None,
        padded_rows=len(rows) if padded_rows is None else padded_rows,
    )


def _share(size: int, rank: int, num_shard: int) -> range:
    each = size // num_shard
    return range(rank * each, (rank + 1) * each)


def kv_heads_of(spec: DecoderSpec, rank: int, num_shard: int) -> range:
    """KV heads on a rank. With more shards than KV heads, neighbouring ranks hold the same head."""
    if num_shard <= spec.num_kv_heads:
        return _share(spec.num_kv_heads, rank, num_shard)
    head = rank * spec.num_kv_heads // num_shard
    return range(head, head + 1)


def can_split(spec: DecoderSpec, num_shard: int) -> bool:
    """Whether heads, KV heads and MLP divide evenly among ``num_shard`` ranks."""
    kv_heads_divide = spec.num_kv_heads % num_shard == 0 or num_shard % spec.num_kv_heads == 0
    return spec.num_heads % num_shard == 0 and kv_heads_divide and spec.intermediate_size % num_shard == 0


def valid_num_shards(spec: DecoderSpec) -> list[int]:
    return [n for n in range(1, spec.num_heads + 1) if can_split(spec, n)]
