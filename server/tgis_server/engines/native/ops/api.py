"""Signatures of the operations. Tokens of a step are packed: row after row, without padding.

In shapes, T is the number of tokens, H and K are the numbers of this rank's query and KV heads, and D is their size.

Each implementation chooses its own memory layout for keys and values: to callers, ``Cache`` and ``AttentionPlan`` are
opaque.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from torch import Tensor

from tgis_server.engines.native import spec
from tgis_server.engines.sampling.api import SamplingOps
from tgis_server.engines.sampling.staging import Staging

Inputs = TypeVar("Inputs")  # inputs of a captured function


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads in a token of ``qkv`` on one rank: H query heads, K key heads, K value heads, of D elements each."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int


@dataclass(frozen=True, slots=True, eq=False)
class RelativeBias:
    """T5's bias on scores: a number for each head and each bucket of distances between key and query."""

    table: Tensor  # (buckets, H)
    max_distance: int  # from here on, all distances share a bucket
    is_bidirectional: bool  # half of the buckets are for keys after the query


@dataclass(frozen=True, slots=True, eq=False)
class AttentionModifiers:
    """How a layer attends. Layers that attend alike share one object: plans are keyed by its identity.

    Scores are query-key products, scaled by ``scale``, limited by ``soft_cap``, biased, and masked where the query does
    not see the key. Positions are those in the sequence; in cross-attention, keys are numbered from 0.
    """

    scale: float
    is_causal: bool = True  # a query sees itself and earlier keys; otherwise all keys of its row
    window: int | None = None  # a query sees keys nearer than this, itself included; in both directions if not causal
    soft_cap: float = 0.0  # scores become cap * tanh(score / cap); 0 = off
    alibi_slopes: Tensor | None = None  # (H,): slope * (key position - query position) is added
    relative_bias: RelativeBias | None = None
    sinks: Tensor | None = None  # (H,): one extra score per head in the softmax, which has no value vector


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Paged keys and values: every layer has ``num_blocks`` blocks of ``block_size`` tokens."""

    num_layers: int
    num_blocks: int
    block_size: int
    heads: Heads


@dataclass(frozen=True, slots=True)
class StepRows:
    """A step's rows in the order of its tokens: rows of one token, ordered by :meth:`Ops.order_singles`, then chunks.

    In cross-attention, tables and numbers of keys describe the encoder's tokens, whose keys and values have
    been written with a separate plan for self-attention over these tables.
    """

    # On the host: the amount of work
    starts: np.ndarray  # (rows,) int64: position of the first token
    num_tokens: np.ndarray  # (rows,) int64
    num_keys: np.ndarray  # (rows,) int64: starts + num_tokens; in cross-attention, the encoder's tokens
    # On the device
    slots: Tensor  # (rows,) int64
    token_slots: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64
    tables: Tensor  # (slots, max_blocks) int64: the blocks of each slot, in the order of its tokens
    encoder_lengths: Tensor | None = None  # (slots,) int64: tokens of each slot's text; only in cross-attention


Cache: TypeAlias = Any  # opaque, from Ops.make_cache
AttentionPlan: TypeAlias = Any  # opaque, from Ops.plan_attention or plan_uncached_attention; for all layers of a step
Rotation: TypeAlias = Any  # opaque, from Ops.make_rotation; for all layers of a step


@dataclass(frozen=True, slots=True)
class WeightPart:
    """A rank's share of a linear weight in its checkpoint's format, as made by the decoder's ``pack_weights``.

    ``tensors`` are keyed by role. "plain" has only ``weight``: (outputs, inputs) in floating point. Quantized formats
    have ``data``, ``scales`` and optionally ``zeros``. ``group_size`` inputs share a scale and a zero; 0 means that all
    inputs do.
    """

    tensors: Mapping[str, Tensor]
    format: str = "plain"
    group_size: int = 0

    @classmethod
    def plain(cls, weight: Tensor) -> WeightPart:
        return cls({"weight": weight})


@dataclass(frozen=True, slots=True)
class LoraView:
    """The low-rank adapters of one linear layer, and the one that each token of a step uses (arXiv:2106.09685).

    For a token with place p, ``scales[p] * B[p] A[p] x`` is added to the layer's output. ``places`` and ``scales`` are
    the same for all layers. A decoder with adapters passes the view to :meth:`Ops.linear`; places come from
    ``NewSequence.adapter_place``.
    """

    places: Tensor  # (T,) int64: the adapter's place; -1: none
    scales: Tensor  # (places,)
    a: Tensor  # (places, rank, inputs); smaller ranks are padded with zeros
    b: Tensor  # (places, outputs, rank)


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """The experts of one layer on one rank, with weights from :meth:`Ops.pack`."""

    mixture: spec.Mixture
    activation: spec.Activation
    is_gated: bool
    choice_bias: Tensor | None  # (experts,) float32
    up: Sequence[Any]  # of each expert; gate and up if the MLP is gated
    up_bias: Tensor | None  # (experts, outputs)
    down: Sequence[Any]
    down_bias: Tensor | None  # (experts, outputs)


class Norm(Protocol):
    """A norm over the last dimension, with its weights."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def add(self, residual: Tensor, x: Tensor, scale: float) -> Tensor:
        """``residual += scale * x`` in place; returns the norm of the sum."""
        ...


class Ops(Protocol):
    """One implementation for one device and dtype."""

    kernels: str  # the instruction set of compiled operations; empty: torch's

    def capture(self, function: Callable[[Inputs, Cache], Tensor | None]) -> Callable[[Inputs, Cache], Tensor | None]:
        """A function that does the same and may be faster, such as one that replays what ``function`` did before.

        Args:
            function: computes with operations of this object alone, and takes nothing from outside that changes. Its
                inputs are a dataclass of tensors with one row per token, attention plans, and dataclasses of these.

        Returns:
            The function. A tensor that it returns may be overwritten by the next call.
        """
        ...

    def pack(self, weight: WeightPart) -> Any:
        """Convert a linear weight for :meth:`linear`. The caller may drop ``weight`` afterwards."""
        ...

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None, lora: LoraView | None) -> Tensor:
        """(T, inputs) -> (T, outputs). If the inputs are divided among ranks, this is the rank's part of the sum."""
        ...

    def make_norm(self, kind: spec.Norm | None, weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm:
        """A norm of this kind. ``weight`` may have leading dimensions, such as one row per head; LayerNorms need none.

        ``kind`` ``None`` stands in for a norm that a layer does not have.
        """
        ...

    def make_activation(self, name: spec.Activation, *, is_gated: bool) -> Callable[[Tensor], Tensor]:
        """The function between the MLP's linear layers; may overwrite its argument.

        If gated, (T, 2 n) -> (T, n): activation of the first half times the second half. Otherwise (T, n) -> (T, n).
        """
        ...

    def mix(
        self, x: Tensor, scores: Tensor, experts: Experts, shared: Tensor | None, shared_gate: Tensor | None
    ) -> Tensor:
        """Run for each token the experts that its scores choose; see ``spec.Mixture``.

        Args:
            x: (T, hidden).
            scores: (T, experts), the router's.
            experts: all of them.
            shared: (T, hidden), added to the result; ``None``: nothing is.
            shared_gate: (T, 1): ``shared`` is multiplied by its sigmoid.

        Returns:
            (T, hidden). If the experts' inner elements are divided among ranks, this is the rank's part of the sum.
        """
        ...

    def embed(self, ids: Tensor, table: Tensor, first_id: int, num_ids: int, scale: float) -> Tensor:
        """Rows of ``table``, whose first row is for ``first_id``, times ``scale``; zero for ids outside the table.

        ``num_ids`` is the size of the whole vocabulary.
        """
        ...

    def add_rows(self, x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
        """Add to each token's elements a row of ``table``: rows (T,) int64. Changes ``x`` in place and returns it."""
        ...

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Add ``y`` to ``x`` in place; returns ``x``."""
        ...

    def sum_squares(self, x: Tensor, sizes: tuple[int, int]) -> Tensor:
        """(T, 2) float32: the sums of the squares of each token's first ``sizes[0]`` elements, and of the next ones."""
        ...

    def rescale(
        self, x: Tensor, squares: Tensor, sizes: tuple[int, int], counts: tuple[int, int], weight: Tensor, eps: float
    ) -> Tensor:
        """Divide each of these parts by the root of its mean square, ``squares / counts``; changes and returns ``x``.

        Args:
            x: (T, elements).
            squares: (T, 2) float32, from :meth:`sum_squares`, possibly added up over ranks.
            sizes: elements of each part.
            counts: numbers of squares in the sums.
            weight: one for each element of both parts; they are multiplied by it.
            eps: added to the mean square.
        """
        ...

    def limit(self, x: Tensor, largest: float) -> Tensor:
        """Limit each element to the range from ``-largest`` to ``largest``, in place; returns ``x``."""
        ...

    def apply(self, function: Callable[[Tensor], object], x: Tensor) -> Tensor:
        """Call a function that changes ``x`` in place, such as a sum over ranks; returns ``x``."""
        ...

    def make_cache(self, shape: CacheShape) -> Cache:
        """Space for this rank's keys and values, in a layout of the implementation's choice, initially zero."""
        ...

    def order_singles(self, num_keys: np.ndarray, cache: Cache) -> np.ndarray | None:
        """The order in which single-token rows are cheapest to compute.

        Args:
            num_keys: (rows,), each including the row's own token.
            cache: from :meth:`make_cache`.

        Returns:
            (rows,) indices; ``None`` for the given order.
        """
        ...

    def plan_attention(self, rows: StepRows, cache: Cache, modifiers: Iterable[AttentionModifiers]) -> AttentionPlan:
        """Prepare, once for all layers, to write the rows' keys and values and to attend to them.

        Called before the layers, on the same stream: the plan may clear or index blocks of the cache. Its tensors are
        new in every step; an implementation whose steps are captured in graphs must keep them at fixed addresses.

        Args:
            rows: with complete block tables.
            cache: from :meth:`make_cache`.
            modifiers: all that :meth:`attend` will be called with; empty if keys and values are only written.
        """
        ...

    def plan_uncached_attention(
        self, lengths: Sequence[int], heads: Heads, modifiers: Iterable[AttentionModifiers]
    ) -> AttentionPlan:
        """Like :meth:`plan_attention`, for :meth:`attend_uncached`: packed sequences of ``lengths`` tokens."""
        ...

    def make_rotation(self, table: Tensor, lines: Tensor) -> Rotation:
        """The rotations of a step's tokens.

        Args:
            table: (lines, 2, rotary_dim), see ``rope_table.py``.
            lines: (T,) int64: each token's line.
        """
        ...

    def prepare_qkv(
        self,
        qkv: Tensor,
        heads: Heads,
        rotation: Rotation | None,
        qk_norm: Norm | None,
        cache: Cache,
        layer: int,
        plan: AttentionPlan,
    ) -> Tensor:
        """Normalise and rotate queries and keys in ``qkv`` in place, and write keys and values to the cache.

        Args:
            qkv: (T, (H + 2 K) D), changed in place.
            heads: the heads in ``qkv``.
            rotation: from :meth:`make_rotation`, or ``None``.
            qk_norm: a norm of (T, H + K, D) over D, or ``None``.
            cache: from :meth:`make_cache`.
            layer: the layer whose keys and values are written.
            plan: from :meth:`plan_attention`, not for cross-attention.

        Returns:
            ``qkv``.
        """
        ...

    def write_keys_values(self, keys_values: Tensor, cache: Cache, layer: int, plan: AttentionPlan) -> None:
        """Write finished keys and values, (T, 2 K D), keys first, to the cache. ``plan`` as in :meth:`prepare_qkv`."""
        ...

    def attend(
        self,
        qkv: Tensor,
        heads: Heads,
        cache: Cache,
        layer: int,
        plan: AttentionPlan,
        modifiers: AttentionModifiers,
    ) -> Tensor:
        """Attention of every token of the step: decode rows and chunks in one call. Returns (T, H D).

        Args:
            qkv: from :meth:`prepare_qkv`; in cross-attention only queries, (T, H D).
            heads: the heads in ``qkv``.
            cache: from :meth:`make_cache`.
            layer: the layer whose keys and values are read; the step's own have been written.
            plan: from :meth:`plan_attention`.
            modifiers: one of the plan's.
        """
        ...

    def attend_uncached(self, qkv: Tensor, heads: Heads, plan: AttentionPlan, modifiers: AttentionModifiers) -> Tensor:
        """Attention within whole sequences, packed and not cached, as in an encoder. Returns (T, H D).

        Args:
            qkv: (T, (H + 2 K) D).
            heads: the heads in ``qkv``.
            plan: from :meth:`plan_uncached_attention`.
            modifiers: one of the plan's.
        """
        ...

    def make_sampling(self, vocab_size: int, staging: Staging) -> SamplingOps:
        """The operations that turn logits into tokens."""
        ...

    def logits(self, hidden: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """(rows, hidden) -> (rows, this rank's vocabulary) in the model's dtype or float32.

        The caller may change the tensor; the next call may overwrite it.
        """
        ...
