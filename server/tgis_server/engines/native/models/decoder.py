"""One decoder for all families: it reads the spec and its weights, and calls ops. It knows no checkpoint and no plan.

Rows are packed: the tokens of a step lie behind each other, (num_tokens, hidden_size), without padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgis_server.engines.native.ops import Ops
from tgis_server.engines.native.ops.api import AttentionModifiers, AttentionPlan, Cache, Heads
from tgis_server.engines.native.parallel import Group
from tgis_server.engines.native.parameters import kv_heads_of, padded_vocab_rows
from tgis_server.engines.native.spec import DecoderSpec

LINEARS = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The tensors of one step, on the device."""

    ids: Tensor  # (num_tokens,) int64
    rope_rows: Tensor  # (num_tokens,) int64: rows of the rope table
    attention: AttentionPlan  # of the ops, for the decoder's modifiers


@dataclass(slots=True)
class LayerWeights:
    """Parameters of one layer; linear weights as the ops packed them, absent biases ``None``."""

    attention_norm: Tensor
    qkv: Any
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # (heads + kv heads, head_dim)
    o: Any
    o_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Any
    gate_up_bias: Tensor | None
    down: Any
    down_bias: Tensor | None


class Decoder:
    """This rank's share of the model."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: dict[str, Any],
        rope_table: Tensor,
        ops: Ops,
        group: Group,
    ) -> None:
        """
        Args:
            spec: what to compute.
            weights: by the names of ``families/names.py``, linear weights packed; see :func:`pack_weights`.
            rope_table: see ``rope.py``.
            ops: the implementation to call.
            group: the ranks that share the model.
        """
        num_kv_heads = len(kv_heads_of(spec, group.rank, group.size))
        self.heads = Heads(spec.num_heads // group.size, num_kv_heads, spec.head_dim, spec.rope.rotary_dim)
        self._spec = spec
        self._ops = ops
        self._group = group
        self._rope_table = rope_table
        self._embedding: Tensor = weights["embedding"]
        self._head = weights["head"]
        self._final_norm: Tensor = weights["final_norm"]
        self._first_id = group.rank * padded_vocab_rows(spec.vocab_size, group.size)
        # What layers of each window size ask of attention
        self.modifiers = {window: AttentionModifiers(spec.attention_scale, window=window) for window in spec.windows}
        self._layers = [self._layer_weights(weights, f"layers.{i}.") for i in range(spec.num_layers)]

    def _layer_weights(self, weights: dict[str, Any], prefix: str) -> LayerWeights:
        qk_norm = None
        if self._spec.has_qk_norm:
            heads = self.heads
            q_norm, k_norm = weights[prefix + "q_norm"], weights[prefix + "k_norm"]
            qk_norm = torch.cat([q_norm.expand(heads.num_heads, -1), k_norm.expand(heads.num_kv_heads, -1)])
        return LayerWeights(
            attention_norm=weights[prefix + "attention_norm"],
            qkv=weights[prefix + "qkv"],
            qkv_bias=weights.get(prefix + "qkv_bias"),
            qk_norm=qk_norm,
            o=weights[prefix + "o"],
            o_bias=weights.get(prefix + "o_bias"),
            mlp_norm=weights[prefix + "mlp_norm"],
            gate_up=weights[prefix + "gate_up"],
            gate_up_bias=weights.get(prefix + "gate_up_bias"),
            down=weights[prefix + "down"],
            down_bias=weights.get(prefix + "down_bias"),
        )

    def forward(self, inputs: StepInputs, cache: Cache) -> Tensor:
        """Run all layers; keys and values of the step's tokens are written to the cache.

        Returns:
            (num_tokens, hidden_size), after the final norm; the same on every rank.
        """
        spec, ops, group = self._spec, self._ops, self._group
        embedded = ops.embed(inputs.ids, self._embedding, self._first_id, spec.vocab_size, spec.embedding_scale)
        residual = group.add(embedded)
        rotation = self._rope_table.index_select(0, inputs.rope_rows)
        x = ops.norm(residual, self._layers[0].attention_norm, spec.norm_eps)
        for i, layer in enumerate(self._layers):
            # Attention
            qkv = ops.linear(x, layer.qkv, layer.qkv_bias)
            qkv = ops.prepare_qkv(qkv, self.heads, rotation, layer.qk_norm, spec.norm_eps, cache, i, inputs.attention)
            x = ops.attend(qkv, self.heads, cache, i, inputs.attention, self.modifiers[spec.windows[i]])
            x = group.add(ops.linear(x, layer.o, layer.o_bias))
            x = ops.add_norm(residual, x, spec.residual_scale, layer.mlp_norm, spec.norm_eps)
            # MLP
            x = ops.gate(ops.linear(x, layer.gate_up, layer.gate_up_bias), spec.activation)
            x = group.add(ops.linear(x, layer.down, layer.down_bias))
            following = self._layers[i + 1].attention_norm if i + 1 < spec.num_layers else self._final_norm
            x = ops.add_norm(residual, x, spec.residual_scale, following, spec.norm_eps)
        return x

    def logits(self, hidden: Tensor) -> Tensor | None:
        """Project rows of :meth:`forward`'s result onto the vocabulary.

        Args:
            hidden: (rows, hidden_size); the same rows on every rank.

        Returns:
            (rows, vocab_size) float32 on rank 0, ``None`` elsewhere. The caller may change it.
        """
        parts = self._group.collect(self._ops.logits(hidden, self._head))
        if parts is None:
            return None
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, -1)[:, : self._spec.vocab_size]
        logits = whole.float()
        return logits if self._spec.logits_scale == 1.0 else logits.mul_(self._spec.logits_scale)


def pack_weights(spec: DecoderSpec, parameters: Iterable[tuple[str, Tensor]], ops: Ops) -> tuple[dict[str, Any], int]:
    """Turn parameters, one at a time as they are read, into what :class:`Decoder` takes.

    Returns:
        The weights by name, and the bytes that were read.
    """
    weights: dict[str, Any] = {}
    num_bytes = 0
    for name, tensor in parameters:
        num_bytes += tensor.nbytes
        is_linear = name == "head" or name.rpartition(".")[2] in LINEARS
        weights[name] = ops.pack(tensor) if is_linear else tensor
    if spec.is_head_tied:
        weights["head"] = ops.pack(weights["embedding"])
    return weights, num_bytes
