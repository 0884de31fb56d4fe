"""Masks that are added to scores: -inf for hidden keys, and biases by the distance between key and query."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tgis_server.engines.native.ops.api import AttentionModifiers, RelativeBias

HIDDEN = float("-inf")


def score_mask(
    modifiers: AttentionModifiers, keys: Tensor, queries: Tensor, num_keys: Tensor | int, dtype: torch.dtype
) -> Tensor:
    """Zero or the head's bias where a query sees a key, and -inf elsewhere.

    Args:
        modifiers: the layers' modifiers.
        keys: positions, broadcasting with ``queries`` to (..., queries, keys).
        queries: positions.
        num_keys: number of keys in each query's row; keys beyond these are padding.
        dtype: the result's dtype.

    Returns:
        (..., 1, queries, keys), or (..., H, queries, keys) with a bias.
    """
    is_hidden = _is_hidden(modifiers, keys, queries, num_keys).unsqueeze(-3)
    bias = _head_bias(modifiers, keys, queries)
    if bias is None:
        return torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device).masked_fill_(is_hidden, HIDDEN)
    return bias.masked_fill_(is_hidden, HIDDEN).to(dtype)


def range_mask(window: int | None, num_keys: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """:func:`score_mask` for one query per row, without biases: zero for a row's last ``window`` keys, -inf elsewhere.

    Every row is copied from one line of -inf, zeros, -inf, which is much cheaper than comparing positions.

    Args:
        window: ``None`` for all keys.
        num_keys: (rows,) int64, at most ``width``.
        width: keys per row, including padding.
        dtype: the result's dtype.

    Returns:
        (rows, 1, 1, width)
    """
    num_seen = width if window is None else window
    num_before = max(0, width - num_seen)
    line = torch.full((num_before + num_seen + width,), HIDDEN, dtype=dtype, device=num_keys.device)
    line[num_before : num_before + num_seen] = 0
    mask = line.unfold(0, width, 1).index_select(0, num_before + num_seen - num_keys)
    return mask[:, None, None]


def _is_hidden(modifiers: AttentionModifiers, keys: Tensor, queries: Tensor, num_keys: Tensor | int) -> Tensor:
    is_hidden = keys > queries if modifiers.is_causal else keys >= num_keys
    if modifiers.window is not None:
        is_hidden = is_hidden | (keys <= queries - modifiers.window)
        if not modifiers.is_causal:
            is_hidden = is_hidden | (keys >= queries + modifiers.window)
    return is_hidden


def _head_bias(modifiers: AttentionModifiers, keys: Tensor, queries: Tensor) -> Tensor | None:
    """(..., H, queries, keys) float32."""
    if modifiers.alibi_slopes is None and modifiers.relative_bias is None:
        return None
    distance = (keys - queries).unsqueeze(-3)
    bias = distance.new_zeros((), dtype=torch.float32)
    if modifiers.alibi_slopes is not None:
        bias = modifiers.alibi_slopes.float()[:, None, None] * distance
    if modifiers.relative_bias is not None:
        bias = bias + _relative_bias(modifiers.relative_bias, distance.squeeze(-3))
    return bias


def _relative_bias(relative: RelativeBias, distance: Tensor) -> Tensor:
    """(..., H, queries, keys) for distances (..., queries, keys), which are clamped to ``max_distance``."""
    most = relative.max_distance
    return bias_by_distance(relative).T[:, distance.clamp(-most, most) + most].movedim(0, -3)  # contiguous along keys


def bias_by_distance(relative: RelativeBias) -> Tensor:
    """(2 * max_distance + 1, H) float32: the biases for distances from -``max_distance`` to ``max_distance``."""
    most = relative.max_distance
    return relative.table.float()[_buckets(relative, torch.arange(-most, most + 1, device=relative.table.device))]


def _buckets(relative: RelativeBias, distance: Tensor) -> Tensor:
    """Half of a direction's buckets hold one distance each; the others widen with the logarithm of the distance.

    As in T5 (arXiv:1910.10683). The order of evaluation, which matters at the borders, is that of transformers.
    """
    num_buckets = relative.table.shape[0]
    first = torch.zeros_like(distance)
    if relative.is_bidirectional:
        num_buckets //= 2
        first = (distance > 0) * num_buckets
        distance = distance.abs()
    else:
        distance = -distance.clamp(max=0)
    num_exact = num_buckets // 2
    growth = torch.log(distance.float() / num_exact) / math.log(relative.max_distance / num_exact)
    wide = num_exact + (growth.clamp(min=0) * (num_buckets - num_exact)).long()
    return first + torch.where(distance < num_exact, distance, wide.clamp(max=num_buckets - 1))
