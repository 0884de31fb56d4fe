"""Which slices of which checkpoint tensors make up each of our parameters, on each rank.

A parameter is a stack of pieces along its rows (``qkv`` = queries, keys, values). A piece says which rows of a
checkpoint tensor it consists of, and how shards share them. Checking and reading files rely on this description alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tgis_server.engines.native.spec import DecoderSpec


class Kind(Enum):
    """The role of a parameter, which decides how it is held on the device."""

    LINEAR = "linear"  # (outputs, inputs), packed by the ops
    EMBEDDING = "embedding"  # rows looked up by token or by position
    NORM = "norm"  # weight of a norm
    BIAS = "bias"
    CHOICE_BIAS = "choice bias"  # float32 whatever the model's dtype: it decides between values that are close


class Split(Enum):
    """How the shards share a piece."""

    COPY = "copy"  # every rank holds all of it
    ROWS = "rows"  # outputs are divided; each rank holds consecutive rows of the piece
    KV_HEADS = "kv heads"  # like ROWS, but by heads; with fewer heads than ranks, several ranks hold the same head
    COLUMNS = "columns"  # inputs are divided; the ranks' products are summed
    FIRST = "first"  # only on rank 0: the bias of a sum over ranks
    VOCAB = "vocab"  # like ROWS, but padded with zero rows to a multiple of the number of shards


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the rows of a piece are in its checkpoint tensor: in runs at equal distances.

    GPT-NeoX stores queries, keys and values of head 0, then of head 1, and so on. So its keys are runs of ``head_dim``
    rows: the first run starts at row ``head_dim``, and the others follow at intervals of ``3 * head_dim`` rows.
    """

    start: int = 0  # first row of the first run
    run_rows: int = 0  # 0: the piece is one run
    stride: int = 0  # from the start of one run to that of the next
    tensor_rows: int = 0  # of the whole tensor; 0: the tensor holds only this piece
    paired_rows: int = 0  # so many leading rows of each head are pairs that rotate together (GPT-J), not two halves
    is_transposed: bool = False  # the tensor is (inputs, outputs), as in GPT-2's Conv1D: its columns are our rows
    index: int = 0  # which of the tensors that are stacked in one, such as those of all experts
    num_stacked: int = 0  # 0: the tensor is not a stack


CONTIGUOUS = Stored()


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a checkpoint tensor, and how shards share them."""

    tensor: str
    rows: int
    columns: int  # 0: the tensor has one dimension
    split: Split
    stored: Stored = CONTIGUOUS

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        rows = self.stored.tensor_rows or self.rows
        stack = (self.stored.num_stacked,) if self.stored.num_stacked else ()
        if not self.columns:
            return (*stack, rows)
        return (*stack, self.columns, rows) if self.stored.is_transposed else (*stack, rows, self.columns)

    def runs(self, rows: range) -> tuple[range, ...]:
        """The rows of the tensor that hold these rows of the piece."""
        run_rows = self.stored.run_rows or self.rows
        found, row = [], rows.start
        while row < rows.stop:
            run, offset = divmod(row, run_rows)
            count = min(run_rows - offset, rows.stop - row)
            first = self.stored.start + run * self.stored.stride + offset
            found.append(range(first, first + count))
            row += count
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of our tensors: a stack of pieces."""

    name: str
    kind: Kind
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class RankSlice:
    """The part of a piece that one rank reads; it has no runs if the rank holds none of the piece."""

    runs: tuple[range, ...]  # rows of the checkpoint tensor; columns if it is stored transposed
    columns: range | None  # None: the tensor has one dimension
    padded_rows: int  # rows of the result; rows beyond the runs are zero

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
    """The part of ``piece`` that ``rank`` reads."""
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
        runs=piece.runs(rows),
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
    """Whether heads, KV heads and MLPs divide evenly among ``num_shard`` ranks."""
    kv_heads_divide = spec.num_kv_heads % num_shard == 0 or num_shard % spec.num_kv_heads == 0
    mlps_divide = all(size % num_shard == 0 for size in spec.inner_sizes)
    return spec.num_heads % num_shard == 0 and kv_heads_divide and mlps_divide


def valid_num_shards(spec: DecoderSpec) -> list[int]:
    return [n for n in range(1, spec.num_heads + 1) if can_split(spec, n)]
