"""Attention with torch's fused kernels or, if there is a soft cap or sinks, with explicit scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tgis_server.engines.native.ops.api import AttentionModifiers, Heads
from tgis_server.engines.native.ops.torch_attention.plan import ChunkView, DecodeView, Views, needs_scores


def attend(qkv: Tensor, heads: Heads, layer: Tensor | None, views: Views, modifiers: AttentionModifiers) -> Tensor:
    """See ``Ops.attend``. ``layer`` holds the layer's blocks; ``None`` if no view needs them."""
    if len(views.decodes) == 1 and not views.chunks:
        return _attend_decode(qkv, heads, layer, views.decodes[0], modifiers)
    out = qkv.new_empty(qkv.shape[0], heads.num_heads * heads.head_dim)
    for decode in views.decodes:
        out[decode.start : decode.stop] = _attend_decode(qkv, heads, layer, decode, modifiers)
    for chunk in views.chunks:
        out[chunk.start : chunk.stop] = _attend_chunk(qkv, heads, layer, chunk, modifiers)
    return out


def _gather(layer: Tensor | None, blocks: Tensor) -> Tensor:
    assert layer is not None, "uncached sequences have no blocks"
    return layer.index_select(0, blocks)


def _attend_decode(
    qkv: Tensor, heads: Heads, layer: Tensor | None, view: DecodeView, modifiers: AttentionModifiers
) -> Tensor:
    """One query per row against padded keys. The query heads of a KV head are passed as its query rows."""
    num_rows, num_kv_heads, head_dim = view.stop - view.start, heads.num_kv_heads, heads.head_dim
    queries = qkv[view.start : view.stop, : heads.num_heads * head_dim]
    queries = queries.view(num_rows, num_kv_heads, -1, head_dim)
    gathered = _gather(layer, view.blocks).view(num_rows, -1, 2, num_kv_heads, head_dim)
    keys, values = gathered.permute(2, 0, 3, 1, 4)
    if needs_scores(modifiers):
        sinks = modifiers.sinks.view(num_kv_heads, -1, 1) if modifiers.sinks is not None else None
        out = _attend_by_scores(queries, keys, values, view.mask, sinks, modifiers)
    else:
        mask = view.mask.expand(-1, -1, queries.shape[2], -1)
        out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=modifiers.scale)
    return out.reshape(num_rows, heads.num_heads * head_dim)


def _attend_chunk(
    qkv: Tensor, heads: Heads, layer: Tensor | None, view: ChunkView, modifiers: AttentionModifiers
) -> Tensor:
    """Several queries of one row against the row's keys."""
    num_heads, num_kv_heads, head_dim = heads.num_heads, heads.num_kv_heads, heads.head_dim
    queries = _by_head(qkv[view.start : view.stop], head_dim)[:num_heads]
    if view.blocks is None:
        own = _by_head(qkv[view.first_key : view.stop_key], head_dim)
        keys, values = own[num_heads : num_heads + num_kv_heads], own[num_heads + num_kv_heads :]
    else:
        gathered = _gather(layer, view.blocks).view(-1, 2, num_kv_heads, head_dim)
        keys, values = gathered[view.first_key : view.stop_key].permute(1, 2, 0, 3)
    mask = view.mask() if callable(view.mask) else view.mask
    is_grouped = num_heads != num_kv_heads
    is_by_scores = needs_scores(modifiers)
    if is_grouped and (is_by_scores or (qkv.is_cuda and mask is not None)):
        # With a mask, kernels that keep scores out of memory need as many KV heads as query heads.
        keys, values = (x.repeat_interleave(num_heads // num_kv_heads, 0) for x in (keys, values))
        is_grouped = False
    if is_by_scores:
        sinks = modifiers.sinks.view(num_heads, 1, 1) if modifiers.sinks is not None else None
        out = _attend_by_scores(queries[None], keys[None], values[None], mask, sinks, modifiers)
    else:
        out = functional.scaled_dot_product_attention(
            queries[None],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=mask is None and modifiers.is_causal,
            scale=modifiers.scale,
            enable_gqa=is_grouped,
        )
    return out[0].transpose(0, 1).reshape(view.stop - view.start, num_heads * head_dim)


def _by_head(tokens: Tensor, head_dim: int) -> Tensor:
    """(tokens, heads * D) -> (heads, tokens, D)"""
    return tokens.view(tokens.shape[0], -1, head_dim).transpose(0, 1)


def _attend_by_scores(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    modifiers: AttentionModifiers,
) -> Tensor:
    """(B, H, Q, D) against (B, H, keys, D). ``sinks`` broadcasts to (H, Q, 1)."""
    scores = torch.matmul(queries, keys.transpose(-1, -2)).float() * modifiers.scale
    if modifiers.soft_cap:
        scores = (scores / modifiers.soft_cap).tanh_().mul_(modifiers.soft_cap)
    if mask is not None:
        scores += mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().expand(*scores.shape[:-1], 1)], -1)
    shares = scores.softmax(-1)[..., : keys.shape[-2]]
    return torch.matmul(shares.to(values.dtype), values)
