"""Signatures of the operations. Rows are packed: a step's tokens lie behind each other, without padding.

Legend: T tokens, H query heads, K KV heads, D head dim, of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """How a rank's rows of ``qkv`` divide: H query heads, K key heads, K value heads of D each."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int


@dataclass(frozen=True, slots=True)
class DecodeView:
    """Rows of one query each and the cached keys they see.

    ``blocks`` indexes the layer's cache seen as (blocks * 2 * K, block_size * D): for keys, then values, for each row,
    for each KV head, the row's blocks in order. ``mask`` hides what lies beyond a row's length or before its window.
    """

    start: int  # first token
    stop: int
    blocks: Tensor  # (2 * rows * K * num_blocks,) int64
    mask: Tensor  # (rows, 1, 1, num_blocks * block_size), 0 or -inf, in the dtype of the queries


@dataclass(frozen=True, slots=True)
class ChunkView:
    """Consecutive queries of one row and the keys they see.

    ``blocks`` is ``None`` where the keys are exactly the chunk's own: they need not be read from the cache. ``mask`` is
    ``None`` where plain causality says everything.
    """

    start: int
    stop: int
    blocks: Tensor | None  # (2 * K * num_blocks,) int64, as in DecodeView
    num_keys: int
    mask: Tensor | None  # (queries, num_keys)


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What each token of a step attends to, for the layers of one window size."""

    decodes: tuple[DecodeView, ...]
    chunks: tuple[ChunkView, ...]


class Ops(Protocol):
    """One implementation for one device and dtype."""

    def pack(self, weight: Tensor) -> Any:
        """Turn a linear weight (outputs, inputs) into what :meth:`linear` takes. ``weight`` may be dropped after."""
        ...

    def linear(self, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """(T, inputs) -> (T, outputs)."""
        ...

    def embed(self, ids: Tensor, table: Tensor, first_id: int, num_ids: int, scale: float) -> Tensor:
        """Rows of ``table`` (ids from ``first_id`` on) times ``scale``; zero where an id lies outside of it."""
        ...

    def norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """RMS norm over the last dimension, computed in float32."""
        ...

    def add_norm(self, residual: Tensor, x: Tensor, scale: float, weight: Tensor, eps: float) -> Tensor:
        """``residual += scale * x`` in place, then :meth:`norm` of it."""
        ...

    def prepare_qkv(
        self,
        qkv: Tensor,
        heads: Heads,
        rotation: Tensor,
        qk_norm: Tensor | None,
        eps: float,
        cache: Tensor,
        rows: Tensor,
    ) -> Tensor:
        """Normalise and rotate queries and keys in ``qkv`` in place, and write keys and values to the cache.

        Args:
            qkv: (T, (H + 2 K) D), changed in place.
            heads: how it divides.
            rotation: (T, 2, rotary_dim), see ``rope.py``.
            qk_norm: (H + K, D) weights of the norm per head, or ``None``.
            eps: of that norm.
            cache: the layer's blocks.
            rows: (T * 2 * K,) int64, rows of the cache seen as (-1, D): per token its keys, then its values.

        Returns:
            ``qkv``.
        """
        ...

    def attend(self, qkv: Tensor, heads: Heads, cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        """Attention of every token of the step: decode rows and chunks in one call. Returns (T, H D)."""
        ...

    def gate(self, gate_up: Tensor, activation: str) -> Tensor:
        """(T, 2 n) -> (T, n): activation of the first half times the second."""
        ...

    def logits(self, hidden: Tensor, weight: Any) -> Tensor:
        """(rows, hidden) -> (rows, this rank's vocabulary) in the model's dtype."""
        ...
