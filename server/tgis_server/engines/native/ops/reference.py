"""The operations in plain torch: correct on every device, and the oracle for faster implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tgis_server.engines.native import spec
from tgis_server.engines.native.ops.api import (
    AttentionModifiers,
    CacheShape,
    Experts,
    Heads,
    Inputs,
    LoraView,
    Norm,
    StepRows,
    WeightPart,
)
from tgis_server.engines.native.ops.linear import LinearWeight, can_prepack, linear, pack
from tgis_server.engines.native.ops.norms import make_norm
from tgis_server.engines.native.ops.torch_attention.attend import attend
from tgis_server.engines.native.ops.torch_attention.cache import PagedCache
from tgis_server.engines.native.ops.torch_attention.plan import (
    TorchPlan,
    order_singles,
    plan_attention,
    plan_uncached_attention,
)
from tgis_server.engines.sampling.staging import Staging
from tgis_server.engines.sampling.torch_ops import TorchSampling

ACTIVATIONS: dict[spec.Activation, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "relu_squared": lambda x: functional.relu(x).square_(),
    "swigluoai": lambda gate: gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7)),
}


class TorchOps:
    """Implements ``Ops`` with torch's own kernels; see ``api.py`` for shapes."""

    kernels = ""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._prepacks = device.type == "cpu" and can_prepack(dtype)
        # Even a good model's float16 keys can overflow; clamped, they still give finite scores.
        self._clamps_values = dtype == torch.float16
        self._dtype = dtype
        self._device = device
        self._staging = Staging(device)

    def capture(
        self, function: Callable[[Inputs, PagedCache], Tensor | None]
    ) -> Callable[[Inputs, PagedCache], Tensor | None]:
        return function

    def pack(self, weight: WeightPart) -> LinearWeight:
        return pack(weight, prepack=self._prepacks)

    def linear(self, x: Tensor, weight: LinearWeight, bias: Tensor | None, lora: LoraView | None) -> Tensor:
        return linear(x, weight, bias, lora)

    def logits(self, hidden: Tensor, weight: LinearWeight, bias: Tensor | None) -> Tensor:
        return linear(hidden, weight, bias, None)

    def make_norm(self, kind: spec.Norm | None, weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm:
        return make_norm(kind, weight, bias, eps)

    def make_activation(self, name: spec.Activation, *, is_gated: bool) -> Callable[[Tensor], Tensor]:
        activation = ACTIVATIONS[name]
        return partial(_gate, activation, name == "swigluoai") if is_gated else activation

    def mix(
        self, x: Tensor, scores: Tensor, experts: Experts, shared: Tensor | None, shared_gate: Tensor | None
    ) -> Tensor:
        activate = self.make_activation(experts.activation, is_gated=experts.is_gated)
        chosen, weights = choose(scores.float(), experts.choice_bias, experts.mixture)
        mixed = torch.zeros_like(x)
        for expert in sorted(set(chosen.flatten().tolist())):
            tokens, which = torch.where(chosen == expert)
            inner = linear(x[tokens], experts.up[expert], _row(experts.up_bias, expert), None)
            outer = linear(activate(inner), experts.down[expert], _row(experts.down_bias, expert), None)
            mixed.index_add_(0, tokens, outer.mul_(weights[tokens, which, None].to(outer.dtype)))
        if shared is None:
            return mixed
        return mixed.add_(shared if shared_gate is None else shared * torch.sigmoid(shared_gate))

    def embed(self, ids: Tensor, table: Tensor, first_id: int, num_ids: int, scale: float) -> Tensor:
        if table.shape[0] == num_ids:
            found = table.index_select(0, ids)
        else:
            local = ids - first_id
            is_outside = (local < 0) | (local >= table.shape[0])
            found = table.index_select(0, local.masked_fill(is_outside, 0)).masked_fill_(is_outside[:, None], 0)
        return found if scale == 1.0 else found.mul_(scale)

    def add_rows(self, x: Tensor, table: Tensor, rows: Tensor) -> Tensor:
        return x.add_(table.index_select(0, rows))

    def sum_squares(self, x: Tensor, sizes: tuple[int, int]) -> Tensor:
        first, second, _ = x.float().tensor_split((sizes[0], sum(sizes)), -1)
        return torch.stack([first.square().sum(-1), second.square().sum(-1)], -1)

    def rescale(
        self, x: Tensor, squares: Tensor, sizes: tuple[int, int], counts: tuple[int, int], weight: Tensor, eps: float
    ) -> Tensor:
        factors = torch.rsqrt(squares / torch.tensor(counts, device=x.device) + eps)
        repeated = factors.repeat_interleave(torch.tensor(sizes, device=x.device), -1)
        x[:, : sum(sizes)] = (x[:, : sum(sizes)] * repeated).to(x.dtype) * weight
        return x

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x.add_(y)

    def limit(self, x: Tensor, largest: float) -> Tensor:
        return x.clamp_(-largest, largest)

    def apply(self, function: Callable[[Tensor], object], x: Tensor) -> Tensor:
        function(x)
        return x

    def make_cache(self, shape: CacheShape) -> PagedCache:
        return PagedCache(shape, self._dtype, self._device)

    def order_singles(self, num_keys: np.ndarray, cache: PagedCache) -> np.ndarray | None:
        return order_singles(-(-num_keys // cache.block_size))

    def plan_attention(self, rows: StepRows, cache: PagedCache, modifiers: Iterable[AttentionModifiers]) -> TorchPlan:
        return plan_attention(rows, cache, modifiers, self._dtype, self._staging)

    def plan_uncached_attention(
        self, lengths: Sequence[int], heads: Heads, modifiers: Iterable[AttentionModifiers]
    ) -> TorchPlan:
        return plan_uncached_attention(lengths, heads, modifiers, self._dtype, self._device)

    def make_sampling(self, vocab_size: int, staging: Staging) -> TorchSampling:
        return TorchSampling(vocab_size, staging)

    def make_rotation(self, table: Tensor, lines: Tensor) -> Tensor:
        return table.index_select(0, lines)

    def prepare_qkv(
        self,
        qkv: Tensor,
        heads: Heads,
        rotation: Tensor | None,
        qk_norm: Norm | None,
        cache: PagedCache,
        layer: int,
        plan: TorchPlan,
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
        self.write_keys_values(qkv[:, heads.num_heads * head_dim :], cache, layer, plan)
        return qkv

    def write_keys_values(self, keys_values: Tensor, cache: PagedCache, layer: int, plan: TorchPlan) -> None:
        assert plan.places is not None, "a plan for cross-attention or uncached sequences writes nothing"
        tokens = cache.layers[layer].view(-1, keys_values.shape[1])
        tokens.index_copy_(0, plan.places, keys_values.nan_to_num() if self._clamps_values else keys_values)

    def attend(
        self,
        qkv: Tensor,
        heads: Heads,
        cache: PagedCache,
        layer: int,
        plan: TorchPlan,
        modifiers: AttentionModifiers,
    ) -> Tensor:
        return attend(qkv, heads, cache.layers[layer], plan.views[modifiers], modifiers)

    def attend_uncached(self, qkv: Tensor, heads: Heads, plan: TorchPlan, modifiers: AttentionModifiers) -> Tensor:
        return attend(qkv, heads, None, plan.views[modifiers], modifiers)


def _gate(activation: Callable[[Tensor], Tensor], is_limited: bool, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return activation(gate).mul_(up.clamp(-7, 7).add_(1) if is_limited else up)


def _row(biases: Tensor | None, index: int) -> Tensor | None:
    return None if biases is None else biases[index]


def choose(scores: Tensor, bias: Tensor | None, mixture: spec.Mixture) -> tuple[Tensor, Tensor]:
    """The experts that tokens choose, and their weights; see ``spec.Mixture``. Both are (T, chosen).

    Args:
        scores: (T, experts) float32.
        bias: (experts,), for the comparison.
        mixture: how to choose.
    """
    if mixture.scoring == "sparsemixer":
        return _mix_sparsely(scores, mixture)
    values = scores.softmax(-1) if mixture.scoring == "softmax" else scores.sigmoid()
    compared = values if bias is None else values + bias
    if mixture.num_chosen_groups < mixture.num_groups:
        groups = compared.view(len(compared), mixture.num_groups, -1)
        sums = groups.topk(min(2, groups.shape[-1]), -1).values.sum(-1)
        is_kept = torch.zeros_like(sums).scatter_(-1, sums.topk(mixture.num_chosen_groups, -1).indices, 1).bool()
        compared = groups.masked_fill(~is_kept[..., None], -torch.inf).flatten(-2)
    chosen = compared.topk(mixture.num_chosen, -1).indices
    weights = values.gather(-1, chosen)
    if mixture.is_normalized:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return chosen, weights * mixture.scale


def _mix_sparsely(scores: Tensor, mixture: spec.Mixture) -> tuple[Tensor, Tensor]:
    left, chosen, weights = scores.clone(), [], []
    for _ in range(mixture.num_chosen):
        most, best = left.max(-1, keepdim=True)
        is_far = (most - scores) / torch.maximum(scores.abs(), most) > 2 * mixture.jitter
        weights.append(left.masked_fill(is_far, -torch.inf).softmax(-1).gather(-1, best) * mixture.scale)
        chosen.append(best)
        left.scatter_(-1, best, -torch.inf)
    return torch.cat(chosen, -1), torch.cat(weights, -1)
