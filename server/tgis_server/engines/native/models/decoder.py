"""One decoder for all families, made from a spec and weights; it computes with the operations of ``ops``.

Tokens of a step are packed, row after row, without padding: (num_tokens, hidden_size). Choices that depend on the
family are made once, in the constructor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgis_server.engines.native.ops.api import (
    AttentionModifiers,
    AttentionPlan,
    Cache,
    Experts,
    Heads,
    Norm,
    Ops,
    RelativeBias,
    Rotation,
    WeightPart,
)
from tgis_server.engines.native.parallel import Group
from tgis_server.engines.native.parameters.pieces import Kind, Parameter, kv_heads_of, padded_vocab_rows
from tgis_server.engines.native.spec import Alibi, DecoderSpec, RelativePositions


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The tensors of one step, on the device."""

    ids: Tensor  # (num_tokens,) int64
    position_rows: Tensor  # (num_tokens,) int64: rows of the rope table or of the learned positions
    attention: AttentionPlan  # for the decoder's modifiers
    cross_attention: AttentionPlan | None = None  # if the decoder attends to an encoder's output


@dataclass(slots=True)
class Mlp:
    """Parameters of an MLP."""

    gate_up: Any  # only ``up`` if the MLP is not gated
    gate_up_bias: Tensor | None
    down: Any
    down_bias: Tensor | None


@dataclass(slots=True)
class MixtureWeights:
    """Parameters of a mixture of experts."""

    router: Any
    router_bias: Tensor | None
    experts: Experts
    shared: Mlp | None
    shared_gate: Any  # ``None``: the result of the shared MLP is used as it is


@dataclass(slots=True)
class LayerWeights:
    """Parameters of one layer. Linear weights are packed by the ops; absent biases are ``None``."""

    index: int
    attention_norm: Norm
    qkv: Any
    qkv_bias: Tensor | None
    qk_norm: Norm | None
    joint_qk_norm: Tensor | None  # its weight, if heads are normalised together
    o: Any
    o_bias: Tensor | None
    attention_post_norm: Norm
    mlp_norm: Norm
    mlp: Mlp | MixtureWeights
    mlp_post_norm: Norm
    modifiers: AttentionModifiers
    rope_index: int | None  # see DecoderSpec; ``None``: nothing is rotated
    next_norm: Norm  # the attention norm of the next layer, or the final norm


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """Inputs that all layers of a step share."""

    plan: AttentionPlan
    cross_plan: AttentionPlan | None
    cache: Cache
    rotations: list[Rotation]


class Stack:
    """This rank's share of embedding, layers and final norm: a decoder without its head, or an encoder."""

    is_causal = True

    def __init__(
        self,
        spec: DecoderSpec,
        weights: dict[str, Any],
        rope_tables: Sequence[Tensor],
        ops: Ops,
        group: Group,
    ) -> None:
        """
        Args:
            spec: the architecture.
            weights: by the names in ``parameters/layouts.py``, with linear weights packed; see :func:`pack_weights`.
            rope_tables: of the spec's ropes; see ``rope_table.py``.
            ops: the implementation to call.
            group: the ranks that share the model.
        """
        num_kv_heads = len(kv_heads_of(spec, group.rank, group.size))
        rotary_dim = spec.rope.rotary_dim if spec.rope else 0
        self.heads = Heads(spec.num_heads // group.size, num_kv_heads, spec.head_dim, rotary_dim)
        self._spec = spec
        self._weights = weights
        self._ops = ops
        self._group = group
        self._rope_tables = rope_tables
        self._learned_positions: Tensor | None = weights.get("positions")
        self._embedding: Tensor = weights["embedding"]
        self._embedding_scale = spec.embedding_scale
        if spec.is_embedding_scale_rounded:
            self._embedding_scale = float(torch.tensor(spec.embedding_scale, dtype=self._embedding.dtype))
        self._embedding_norm = self._norm("embedding_norm") if spec.has_embedding_norm else None
        self._first_id = group.rank * padded_vocab_rows(spec.vocab_size, group.size)
        self._slopes, self._bias = self._alibi_slopes(), self._relative_bias()
        self.modifiers: dict[object, AttentionModifiers] = {}
        self._activate = ops.make_activation(spec.activation, is_gated=spec.is_mlp_gated)
        self._run_layer = {
            "serial": self._serial,
            "parallel": self._parallel,
            "parallel_two_norms": self._parallel_two_norms,
            "sandwich": self._sandwich,
            "post_norm": self._sandwich,  # without the first norms
        }[spec.residual]
        layers, following = [], self._norm("final_norm")
        for i in reversed(range(spec.num_layers)):
            layers.append(self._layer_weights(i, following))
            following = layers[-1].attention_norm
        self._layers = layers[::-1]
        self._run_layers = ops.capture(self._forward)

    def _relative_bias(self) -> RelativeBias | None:
        positions = self._spec.positions
        if not isinstance(positions, RelativePositions):
            return None
        table = self._weights["relative_bias"]
        return RelativeBias(table, positions.max_distance, is_bidirectional=not self.is_causal)

    def _alibi_slopes(self) -> Tensor | None:
        """(H,), for this rank's heads."""
        if not isinstance(self._spec.positions, Alibi):
            return None
        first = self._group.rank * self.heads.num_heads
        slopes = self._spec.positions.slopes[first : first + self.heads.num_heads]
        return torch.tensor(slopes, device=self._embedding.device)

    def _norm(self, name: str) -> Norm:
        """The norm of that name; one that changes nothing if the family has none there."""
        if name not in self._weights and self._spec.has_norm_weight:
            return self._ops.make_norm(None, None, None, 0.0)
        bias = self._weights.get(f"{name}_bias")
        return self._ops.make_norm(self._spec.norm, self._weights.get(name), bias, self._spec.norm_eps)

    def _qk_norm(self, prefix: str) -> Norm | None:
        if self._spec.qk_norm is None:
            return None
        weight = self._of_heads(f"{prefix}q_norm", f"{prefix}k_norm")
        has_bias = f"{prefix}q_norm_bias" in self._weights
        bias = self._of_heads(f"{prefix}q_norm_bias", f"{prefix}k_norm_bias") if has_bias else None
        return self._ops.make_norm(self._spec.qk_norm, weight, bias, self._spec.norm_eps)

    def _joint_qk_norm(self, prefix: str) -> Tensor | None:
        if not self._spec.is_qk_norm_joint:
            return None
        return torch.cat([self._weights[f"{prefix}q_norm"], self._weights[f"{prefix}k_norm"]])

    def _of_heads(self, query: str, key: str) -> Tensor:
        """(H + K, head_dim): the vector of each query head, then of each key head.

        The weights are one vector for all heads, or those of this rank's heads, or those of all ranks'.
        """
        first = self._group.rank * self.heads.num_heads
        kv_heads = kv_heads_of(self._spec, self._group.rank, self._group.size)
        own = range(first, first + self.heads.num_heads), kv_heads
        found = []
        for name, heads, total in zip((query, key), own, (self._spec.num_heads, self._spec.num_kv_heads), strict=True):
            vectors = self._weights[name].view(-1, self.heads.head_dim)
            if len(vectors) == total:
                vectors = vectors[heads.start : heads.stop] if total > 1 else vectors
            found.append(vectors.expand(len(heads), -1))
        return torch.cat(found)

    def _layer_weights(self, index: int, next_norm: Norm) -> LayerWeights:
        weights, prefix = self._weights, f"layers.{index}."
        return LayerWeights(
            index=index,
            attention_norm=self._norm(prefix + "attention_norm"),
            qkv=weights[prefix + "qkv"],
            qkv_bias=weights.get(prefix + "qkv_bias"),
            qk_norm=None if self._spec.is_qk_norm_joint else self._qk_norm(prefix),
            joint_qk_norm=self._joint_qk_norm(prefix),
            o=weights[prefix + "o"],
            o_bias=weights.get(prefix + "o_bias"),
            attention_post_norm=self._norm(prefix + "attention_post_norm"),
            mlp_norm=self._norm(prefix + "mlp_norm"),
            mlp=self._mixture(prefix) if self._spec.has_experts(index) else self._mlp_weights(prefix),
            mlp_post_norm=self._norm(prefix + "mlp_post_norm"),
            modifiers=self._modifiers(index),
            rope_index=self._spec.rope_index(index),
            next_norm=next_norm,
        )

    def _modifiers(self, index: int) -> AttentionModifiers:
        """How the layer attends; the same object as of an earlier layer that attends alike."""
        window, sinks = self._spec.windows[index], self._weights.get(f"layers.{index}.sinks")
        key = window if sinks is None else (window, index)
        if key not in self.modifiers:
            self.modifiers[key] = AttentionModifiers(
                self._spec.attention_scale,
                is_causal=self.is_causal,
                window=window,
                soft_cap=self._spec.attention_cap,
                alibi_slopes=self._slopes,
                relative_bias=self._bias,
                sinks=sinks,
            )
        return self.modifiers[key]

    def _mlp_weights(self, prefix: str) -> Mlp:
        weights, up = self._weights, prefix + ("gate_up" if self._spec.is_mlp_gated else "up")
        return Mlp(weights[up], weights.get(f"{up}_bias"), weights[prefix + "down"], weights.get(prefix + "down_bias"))

    def _mixture(self, prefix: str) -> MixtureWeights:
        mixture = self._spec.mixture
        assert mixture is not None
        weights = self._weights
        experts = [self._mlp_weights(f"{prefix}experts.{i}.") for i in range(mixture.num_experts)]

        def stack(biases: list[Tensor | None]) -> Tensor | None:
            return None if biases[0] is None else torch.stack([bias for bias in biases if bias is not None])

        return MixtureWeights(
            router=weights[prefix + "router"],
            router_bias=weights.get(prefix + "router_bias"),
            experts=Experts(
                mixture=mixture,
                activation=self._spec.activation,
                is_gated=self._spec.is_mlp_gated,
                choice_bias=weights.get(prefix + "choice_bias"),
                up=[expert.gate_up for expert in experts],
                up_bias=stack([expert.gate_up_bias for expert in experts]),
                down=[expert.down for expert in experts],
                down_bias=stack([expert.down_bias for expert in experts]),
            ),
            shared=self._mlp_weights(prefix + "shared_") if mixture.shared_size else None,
            shared_gate=weights.get(prefix + "shared_gate"),
        )

    def forward(self, inputs: StepInputs, cache: Cache) -> Tensor:
        """Run all layers, writing the keys and values of the step's tokens to the cache.

        Returns:
            (num_tokens, hidden_size), after the final norm; the same on every rank. The next call may overwrite it.
        """
        hidden = self._run_layers(inputs, cache)
        assert hidden is not None
        return hidden

    def _forward(self, inputs: StepInputs, cache: Cache) -> Tensor:
        residual = self._embed(inputs)
        rotations = [self._ops.make_rotation(table, inputs.position_rows) for table in self._rope_tables]
        step = LayerInputs(inputs.attention, inputs.cross_attention, cache, rotations)
        x = self._layers[0].attention_norm(residual)
        for layer in self._layers:
            x = self._run_layer(layer, residual, x, step)
        return x

    def _embed(self, inputs: StepInputs) -> Tensor:
        vocab_size = self._spec.vocab_size
        x = self._ops.embed(inputs.ids, self._embedding, self._first_id, vocab_size, self._embedding_scale)
        x = self._sum(x)
        if self._learned_positions is not None:
            x = self._ops.add_rows(x, self._learned_positions, inputs.position_rows)
        return x if self._embedding_norm is None else self._embedding_norm(x)

    # -- The kinds of layers: each adds to ``residual``; ``x`` is its norm before, the result its norm after -----------

    def _serial(self, layer: LayerWeights, residual: Tensor, x: Tensor, step: LayerInputs) -> Tensor:
        scale = self._spec.residual_scale
        x = self._sum(self._attention(layer, x, step))
        x = layer.mlp_norm.add(residual, x, scale)
        x = self._sum(self._run_mlp(layer.mlp, x))
        return layer.next_norm.add(residual, x, scale)

    def _parallel(self, layer: LayerWeights, residual: Tensor, x: Tensor, step: LayerInputs) -> Tensor:
        both = self._ops.add(self._attention(layer, x, step), self._run_mlp(layer.mlp, x))
        return layer.next_norm.add(residual, self._sum(both), self._spec.residual_scale)

    def _parallel_two_norms(self, layer: LayerWeights, residual: Tensor, x: Tensor, step: LayerInputs) -> Tensor:
        both = self._ops.add(self._attention(layer, x, step), self._run_mlp(layer.mlp, layer.mlp_norm(residual)))
        return layer.next_norm.add(residual, self._sum(both), self._spec.residual_scale)

    def _sandwich(self, layer: LayerWeights, residual: Tensor, x: Tensor, step: LayerInputs) -> Tensor:
        scale = self._spec.residual_scale
        x = layer.attention_post_norm(self._sum(self._attention(layer, x, step)))
        x = layer.mlp_norm.add(residual, x, scale)
        x = layer.mlp_post_norm(self._sum(self._run_mlp(layer.mlp, x)))
        return layer.next_norm.add(residual, x, scale)

    def _sum(self, x: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        return x if self._group.size == 1 else self._ops.apply(self._group.add, x)

    # -- The parts of a layer: this rank's share of a sum --------------------------------------------------------------

    def _attention(self, layer: LayerWeights, x: Tensor, step: LayerInputs) -> Tensor:
        ops = self._ops
        qkv = ops.linear(x, layer.qkv, layer.qkv_bias, None)
        if layer.joint_qk_norm is not None:
            qkv = self._normalize_jointly(qkv, layer.joint_qk_norm)
        if self._spec.qkv_limit:
            qkv = ops.limit(qkv, self._spec.qkv_limit)
        rotation = None if layer.rope_index is None else step.rotations[layer.rope_index]
        qkv = ops.prepare_qkv(qkv, self.heads, rotation, layer.qk_norm, step.cache, layer.index, step.plan)
        x = ops.attend(qkv, self.heads, step.cache, layer.index, step.plan, layer.modifiers)
        return ops.linear(x, layer.o, layer.o_bias, None)

    def _normalize_jointly(self, qkv: Tensor, weight: Tensor) -> Tensor:
        heads, size = self.heads, self._group.size
        sizes = heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim
        squares = self._sum(self._ops.sum_squares(qkv, sizes))
        # If ranks share a KV head, it is in the sum and in the count as often as ranks have it.
        counts = sizes[0] * size, sizes[1] * size
        return self._ops.rescale(qkv, squares, sizes, counts, weight, self._spec.norm_eps)

    def _run_mlp(self, mlp: Mlp | MixtureWeights, x: Tensor) -> Tensor:
        ops = self._ops
        if isinstance(mlp, Mlp):
            inner = self._activate(ops.linear(x, mlp.gate_up, mlp.gate_up_bias, None))
            return ops.linear(inner, mlp.down, mlp.down_bias, None)
        scores = ops.linear(x, mlp.router, mlp.router_bias, None)
        shared = None if mlp.shared is None else self._run_mlp(mlp.shared, x)
        gate = None if mlp.shared_gate is None else ops.linear(x, mlp.shared_gate, None, None)
        return ops.mix(x, scores, mlp.experts, shared, gate)


class Decoder(Stack):
    """This rank's share of a decoder with its head."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: dict[str, Any],
        rope_tables: Sequence[Tensor],
        ops: Ops,
        group: Group,
    ) -> None:
        super().__init__(spec, weights, rope_tables, ops, group)
        self._head = weights["head"]
        self._head_bias: Tensor | None = weights.get("head_bias")

    def logits(self, hidden: Tensor) -> Tensor | None:
        """Project rows of :meth:`forward`'s result onto the vocabulary.

        Args:
            hidden: (rows, hidden_size); the same rows on every rank.

        Returns:
            (rows, vocab_size) float32 on rank 0, ``None`` elsewhere. The caller may modify the tensor; the next call
            may overwrite it.
        """
        parts = self._group.collect(self._ops.logits(hidden, self._head, self._head_bias))
        if parts is None:
            return None
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, -1)[:, : self._spec.vocab_size]
        logits = whole.float()
        if self._spec.logits_scale != 1.0:
            logits.mul_(self._spec.logits_scale)
        cap = self._spec.logits_cap
        return logits.div_(cap).tanh_().mul_(cap) if cap else logits


def pack_weights(spec: DecoderSpec, parameters: Iterable[tuple[Parameter, Tensor]], ops: Ops) -> dict[str, Any]:
    """Pack parameters for :class:`Decoder`, one by one as they are read; returns the weights by name."""
    weights: dict[str, Any] = {}
    for parameter, tensor in parameters:
        is_linear = parameter.kind is Kind.LINEAR
        weights[parameter.name] = ops.pack(WeightPart.plain(tensor)) if is_linear else tensor
    if spec.is_head_tied:
        weights["head"] = ops.pack(WeightPart.plain(weights["embedding"]))
    return weights
