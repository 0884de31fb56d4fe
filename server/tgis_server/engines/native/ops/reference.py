"""The operations in plain torch: right everywhere, and the oracle of every faster implementation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from tgis_server.engines.native import spec
from tgis_server.engines.native.ops.api import (
    AttentionPlan,
    ChunkView,
    DecodeView,
    Heads,
    LoraView,
    Norm,
    WeightPart,
)
from tgis_server.engines.native.ops.linear import LinearWeight, can_prepack, linear, pack
from tgis_server.engines.native.ops.norms import make_norm

ACTIVATIONS: dict[spec.Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


class TorchOps:
    """Implements ``Ops`` with torch's own kernels; see ``api.py`` for shapes."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._prepacks = device.type == "cpu" and can_prepack(dtype)
        # Half-precision keys of a good model can overflow; limited, they still give finite scores.
        self._limits_values = dtype == torch.float16

    def pack(self, weight: WeightPart) -> LinearWeight:
        return pack(weight, prepack=self._prepacks)

    def linear(self, x: Tensor, weight: LinearWeight, bias: Tensor | None, lora: LoraView | None) -> Tensor:
        return linear(x, weight, bias, lora)

    def logits(self, hidden: Tensor, weight: LinearWeight, bias: Tensor | None) -> Tensor:
        return linear(hidden, weight, bias, None)

    def make_norm(self, kind: spec.Norm, weight: Tensor, bias: Tensor | None, eps: float) -> Norm:
        return make_norm(kind, weight, bias, eps)

    def make_activation(self, name: spec.Activation, *, is_gated: bool) -> Callable[[Tensor], Tensor]:
        activation = ACTIVATIONS[name]
        return partial(_gate, activation) if is_gated else activation

    def embed(self, ids: Tensor, table: Tensor, first_id: int, num_ids: int, scale: float) -> Tensor:
        if table.shape[0] == num_ids:
            found = table.index_select(0, ids)
        else:
            local = ids - first_id
            is_outside = (local < 0) | (local >= table.shape[0])
            found = table.index_select(0, local.masked_fill(is_outside, 0)).masked_fill_(is_outside[:, None], 0)
        return found if scale == 1.0 else found.mul_(scale)

    def prepare_qkv(
        self,
        qkv: Tensor,
        heads: Heads,
        rotation: Tensor | None,
        qk_norm: Norm | None,
        cache: Tensor,
        rows: Tensor,
    ) -> Tensor:
        num_tokens, head_dim = qkv.shape[0], heads.head_dim
        num_rotated = heads.num_heads + heads.num_kv_heads
        queries_keys = qkv[:, : num_rotated * head_dim].view(num_tokens, num_rotated, head_dim)
        if qk_norm is not None:
            queries_keys.copy_(qk_norm(queries_keys))
        if rotation is not None:
            rotated = queries_keys[..., : heads.rotary_dim]
            swapped = rotated.roll(heads.rotary_dim // 2, -1)
            torch.addcmul(rotated * rotation[:, :1], swapped, rotation[:, 1:], out=rotated)
        keys_values = qkv[:, heads.num_heads * head_dim :].reshape(-1, head_dim)
        if self._limits_values:
            keys_values = keys_values.nan_to_num()
        cache.view(-1, head_dim).index_copy_(0, rows, keys_values)
        return qkv

    def attend(self, qkv: Tensor, heads: Heads, cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
        if len(plan.decodes) == 1 and not plan.chunks:
            return _attend_decode(qkv, heads, cache, plan.decodes[0], scale)
        out = qkv.new_empty(qkv.shape[0], heads.num_heads * heads.head_dim)
        for decode in plan.decodes:
            out[decode.start : decode.stop] = _attend_decode(qkv, heads, cache, decode, scale)
        for chunk in plan.chunks:
            out[chunk.start : chunk.stop] = _attend_chunk(qkv, heads, cache, chunk, scale)
        return out


def _gate(activation: Callable[[Tensor], Tensor], gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return activation(gate).mul_(up)


def _attend_decode(qkv: Tensor, heads: Heads, cache: Tensor, view: DecodeView, scale: float) -> Tensor:
    """One query per row against padded keys. The heads of a group are the query rows of their KV head."""
    num_rows, num_kv_heads, head_dim = view.stop - view.start, heads.num_kv_heads, heads.head_dim
    queries = qkv[view.start : view.stop, : heads.num_heads * head_dim]
    queries = queries.view(num_rows, num_kv_heads, -1, head_dim)
    gathered = cache.view(cache.shape[0] * 2 * num_kv_heads, -1).index_select(0, view.blocks)
    keys, values = gathered.view(2, num_rows, num_kv_heads, -1, head_dim)
    mask = view.mask.expand(-1, -1, queries.shape[2], -1)
    out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    return out.reshape(num_rows, heads.num_heads * head_dim)


def _attend_chunk(qkv: Tensor, heads: Heads, cache: Tensor, view: ChunkView, scale: float) -> Tensor:
    """Several queries of one row against its keys."""
    num_heads, num_kv_heads, head_dim = heads.num_heads, heads.num_kv_heads, heads.head_dim
    rows = qkv[view.start : view.stop].view(view.stop - view.start, -1, head_dim).transpose(0, 1)
    queries = rows[:num_heads]
    if view.blocks is None:
        keys, values = rows[num_heads : num_heads + num_kv_heads], rows[num_heads + num_kv_heads :]
    else:
        gathered = cache.view(cache.shape[0] * 2 * num_kv_heads, -1).index_select(0, view.blocks)
        keys, values = gathered.view(2, num_kv_heads, -1, head_dim)[:, :, : view.num_keys]
    is_grouped = num_heads != num_kv_heads
    if is_grouped and qkv.is_cuda and view.mask is not None:
        # With a mask, the kernels that do not write all scores to memory take only as many KV heads as query heads.
        keys, values = (x.repeat_interleave(num_heads // num_kv_heads, 0) for x in (keys, values))
        is_grouped = False
    out = functional.scaled_dot_product_attention(
        queries[None],
        keys[None],
        values[None],
        attn_mask=view.mask,
        is_causal=view.mask is None,
        scale=scale,
        enable_gqa=is_grouped,
    )
    return out[0].transpose(0, 1).reshape(view.stop - view.start, num_heads * head_dim)
