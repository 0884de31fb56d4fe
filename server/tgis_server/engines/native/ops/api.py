"""Signatures of the operations. Rows are packed: a step's tokens lie behind each other, without padding.

Legend: T tokens, H query heads, K KV heads, D head dim, of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from tgis_server.engines.native import spec


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


@dataclass(frozen=True, slots=True)
class WeightPart:
    """A rank's share of a linear weight, in the format of its checkpoint.

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

    def prepare_qkv(
        self,
        qkv: Tensor,
        heads: Heads,
        rotation: Tensor | None,
        qk_norm: Norm | None,
        cache: Tensor,
        rows: Tensor,
    ) -> Tensor:
        """Normalise and rotate queries and keys in ``qkv`` in place, and write keys and values to the cache.

        Args:
            qkv: (T, (H + 2 K) D), changed in place.
            heads: how it divides.
            rotation: (T, 2, rotary_dim), see ``rope.py``; ``None`` where nothing is rotated.
            qk_norm: of (T, H + K, D), over each head, or ``None``.
            cache: the layer's blocks.
            rows: (T * 2 * K,) int64, rows of the cache seen as (-1, D): per token its keys, then its values.

        Returns:
            ``qkv``.
        """
        ...

    def attend(self, qkv: Tensor, heads: Heads, cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        """Attention of every token of the step: decode rows and chunks in one call. Returns (T, H D)."""
        ...

    def logits(self, hidden: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        """(rows, hidden) -> (rows, this rank's vocabulary) in the model's dtype."""
        ...
