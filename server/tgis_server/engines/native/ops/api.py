"""Signatures of the operations. Rows are packed: a step's tokens lie behind each other, without padding.

Legend: T tokens, H query heads, K KV heads, D head dim, of this rank.

How keys and values lie in memory, and what attention needs to find them, is each implementation's own business: callers
hold a ``Cache`` and an ``AttentionPlan`` and look into neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from torch import Tensor

from tgis_server.engines.native import spec


@dataclass(frozen=True, slots=True)
class Heads:
    """How a rank's rows of ``qkv`` divide: H query heads, K key heads, K value heads of D each."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int


@dataclass(frozen=True, slots=True, eq=False)
class RelativeBias:
    """T5's bias on scores: a number per head for each bucket of distances between key and query."""

    table: Tensor  # (buckets, H)
    max_distance: int  # from there on all distances share a bucket
    is_bidirectional: bool  # half of the buckets are for keys behind the query


@dataclass(frozen=True, slots=True, eq=False)
class AttentionModifiers:
    """How a layer attends. Equal layers share one object: plans are kept by its identity.

    Scores are query-key products times ``scale``, then limited by ``soft_cap``, then biased, then hidden where a key is
    not seen. Positions are those in the sequence; in cross-attention keys are counted from 0 on.
    """

    scale: float
    is_causal: bool = True  # a query sees itself and what is before it; otherwise all keys of its row
    window: int | None = None  # a query sees keys nearer than this, itself included (before, and behind if not causal)
    soft_cap: float = 0.0  # scores become cap * tanh(score / cap); 0 = off
    alibi_slopes: Tensor | None = None  # (H,): slope * (key position - query position) is added
    relative_bias: RelativeBias | None = None
    sinks: Tensor | None = None  # (H,): a further score per head, which takes part in the softmax and adds no value


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Paged keys and values: every layer has ``num_blocks`` blocks of ``block_size`` tokens."""

    num_layers: int
    num_blocks: int
    block_size: int
    heads: Heads


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a step in the order of its tokens: those of one token, as :meth:`Ops.order_singles` says, then chunks.

    In cross-attention, tables, lengths and numbers of keys are those of the encoder's tokens, complete and not growing.
    Writing them is a plan of its own, of self-attention over those tables.
    """

    # On the host: how much there is to do
    starts: np.ndarray  # (rows,) int64: position of the first token
    num_tokens: np.ndarray  # (rows,) int64
    num_keys: np.ndarray  # (rows,) int64: starts + num_tokens, or in cross-attention the encoder's tokens
    # On the device
    slots: Tensor  # (rows,) int64
    token_slots: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64
    tables: Tensor  # (slots, most blocks) int64: the blocks of each slot, in the order of its tokens
    lengths: Tensor  # (slots,) int64: keys that were written before this step
    is_cross: bool = False


Cache: TypeAlias = Any  # opaque: what Ops.make_cache returns
AttentionPlan: TypeAlias = Any  # opaque: what Ops.plan and Ops.plan_whole return, for all layers of one step


@dataclass(frozen=True, slots=True)
class WeightPart:
    """A rank's share of a linear weight, in the format of its checkpoint. ``pack_weights`` of the decoder makes it.

    ``tensors`` are by role. "plain" has one, ``weight``: (outputs, inputs) in floating point. Formats of fewer bits
    have ``data``, ``scales`` and perhaps ``zeros``, each for ``group_size`` inputs; 0 stands for all of them.
    """

    tensors: Mapping[str, Tensor]
    format: str = "plain"
    group_size: int = 0

    @classmethod
    def plain(cls, weight: Tensor) -> WeightPart:
        return cls({"weight": weight})


@dataclass(frozen=True, slots=True)
class LoraView:
    """The low-rank adapters of one linear layer, and which of them each row of a step uses (arXiv:2106.09685).

    A row with place p gets ``scales[p] * B[p] A[p] x`` added. ``places`` and ``scales`` are the same for all layers.
    The decoder passes it to :meth:`Ops.linear`; a row's place is its sequence's ``NewSequence.adapter_place``.
    """

    places: Tensor  # (T,) int64: which adapter; -1: none
    scales: Tensor  # (places,)
    a: Tensor  # (places, rank, inputs); smaller ranks are filled up with zeros
    b: Tensor  # (places, outputs, rank)


class Norm(Protocol):
    """A norm over the last dimension, with its weights."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def add(self, residual: Tensor, x: Tensor, scale: float) -> Tensor:
        """``residual += scale * x`` in place, then the norm of it."""
        ...


class Ops(Protocol):
    """One implementation for one device and dtype."""

    def pack(self, weight: WeightPart) -> Any:
        """Turn a linear weight into what :meth:`linear` takes. ``weight`` may be dropped after."""
        ...

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None, lora: LoraView | None) -> Tensor:
        """(T, inputs) -> (T, outputs). Of a weight whose inputs are divided among ranks, the rank's part of the sum."""
        ...

    def make_norm(self, kind: spec.Norm, weight: Tensor, bias: Tensor | None, eps: float) -> Norm:
        """What to call for a norm of this kind. ``weight`` may have leading dimensions, such as one row per head."""
        ...

    def make_activation(self, name: spec.Activation, *, is_gated: bool) -> Callable[[Tensor], Tensor]:
        """What lies between the MLP's linear layers; may change what it is given.

        Gated, (T, 2 n) -> (T, n): activation of the first half times the second. Else (T, n) -> (T, n).
        """
        ...

    def embed(self, ids: Tensor, table: Tensor, first_id: int, num_ids: int, scale: float) -> Tensor:
        """Rows of ``table`` (ids from ``first_id`` on) times ``scale``; zero where an id lies outside of it."""
        ...

    def make_cache(self, shape: CacheShape) -> Cache:
        """Room for keys and values of this rank, in whatever layout this implementation wants. Blocks are zero."""
        ...

    def order_singles(self, num_keys: np.ndarray, cache: Cache) -> np.ndarray | None:
        """In which order rows of one token are best computed.

        Args:
            num_keys: (rows,) of each, with its own.
            cache: of :meth:`make_cache`.

        Returns:
            (rows,) indices, or ``None``: as they are.
        """
        ...

    def plan(self, rows: Rows, cache: Cache, modifiers: Iterable[AttentionModifiers]) -> AttentionPlan:
        """Prepare writing the rows' tokens and attending to their keys, once for all layers.

        Launched before the layers, on the same stream: the plan may clear or index blocks of the cache. Its tensors are
        new in every step: an implementation whose steps are to be captured in graphs keeps them at fixed addresses.

        Args:
            rows: see there; their tables are complete.
            cache: of :meth:`make_cache`.
            modifiers: all that :meth:`attend` will be called with; none where keys and values are only written.
        """
        ...

    def plan_whole(
        self, lengths: Sequence[int], heads: Heads, modifiers: Iterable[AttentionModifiers]
    ) -> AttentionPlan:
        """As :meth:`plan` for :meth:`attend_whole`: sequences of ``lengths`` tokens, packed."""
        ...

    def prepare_qkv(
        self,
        qkv: Tensor,
        heads: Heads,
        rotation: Tensor | None,
        qk_norm: Norm | None,
        cache: Cache,
        layer: int,
        plan: AttentionPlan,
    ) -> Tensor:
        """Normalise and rotate queries and keys in ``qkv`` in place, and write keys and values to the cache.

        Args:
            qkv: (T, (H + 2 K) D), changed in place.
            heads: how it divides.
            rotation: (T, 2, rotary_dim), see ``rope.py``, or ``None``.
            qk_norm: of (T, H + K, D), over each head, or ``None``.
            cache: of :meth:`make_cache`.
            layer: where to write.
            plan: of :meth:`plan`, not of cross-attention.

        Returns:
            ``qkv``.
        """
        ...

    def write_keys_values(self, keys_values: Tensor, cache: Cache, layer: int, plan: AttentionPlan) -> None:
        """Write to the cache what is ready: (T, 2 K D), keys before values. ``plan`` says where, as in prepare_qkv."""
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
            qkv: of :meth:`prepare_qkv`; in cross-attention queries alone do, (T, H D).
            heads: how it divides.
            cache: of :meth:`make_cache`.
            layer: whose keys and values; those of the step's tokens have been written.
            plan: of :meth:`plan`.
            modifiers: one of the plan's.
        """
        ...

    def attend_whole(self, qkv: Tensor, heads: Heads, plan: AttentionPlan, modifiers: AttentionModifiers) -> Tensor:
        """Attention within packed, whole sequences that are not cached: an encoder's. Returns (T, H D).

        Args:
            qkv: (T, (H + 2 K) D).
            heads: how it divides.
            plan: of :meth:`plan_whole`.
            modifiers: one of the plan's.
        """
        ...

    def logits(self, hidden: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """(rows, hidden) -> (rows, this rank's vocabulary) in the model's dtype."""
        ...
