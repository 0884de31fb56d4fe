"""An encoder, and a decoder whose layers also attend to its output, from the parts of ``decoder.py``.

The encoder runs once per sequence. Each layer of the decoder turns the encoder's output into keys and values, which are
kept in the same cache as the decoder's own, in separate blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tgis_server.engines.native.models.decoder import Decoder, LayerInputs, LayerWeights, Stack, StepInputs
from tgis_server.engines.native.ops.api import AttentionModifiers, AttentionPlan, Cache, Norm, Ops
from tgis_server.engines.native.parallel import Group
from tgis_server.engines.native.spec import EncoderDecoderSpec

ENCODER = "encoder."  # prefix of the encoder's parameters


@dataclass(frozen=True, slots=True)
class EncoderInputs:
    """The whole texts that the encoder reads in one step, packed."""

    step: StepInputs  # its attention plan is from ``Ops.plan_uncached_attention``
    writes: AttentionPlan  # from ``Ops.plan_attention``: where the tokens' keys and values are written


@dataclass(frozen=True, slots=True)
class CrossWeights:
    """Cross-attention parameters of a decoder layer. Linear weights are packed by the ops."""

    norm: Norm
    q: Any
    q_bias: Tensor | None
    kv: Any
    kv_bias: Tensor | None
    o: Any
    o_bias: Tensor | None


class Encoder(Stack):
    """Layers in which each token sees all others of its text, and whose keys and values are not cached."""

    is_causal = False

    def _attention(self, layer: LayerWeights, x: Tensor, step: LayerInputs) -> Tensor:
        qkv = self._ops.linear(x, layer.qkv, layer.qkv_bias, None)
        x = self._ops.attend_uncached(qkv, self.heads, step.plan, layer.modifiers)
        return self._ops.linear(x, layer.o, layer.o_bias, None)


class EncoderDecoder(Decoder):
    """This rank's share of the model. The methods inherited from ``Decoder`` run the decoder's rows."""

    def __init__(
        self, spec: EncoderDecoderSpec, weights: dict[str, Any], rope_tables: Sequence[Tensor], ops: Ops, group: Group
    ) -> None:
        super().__init__(spec, weights, rope_tables, ops, group)
        own = {name.removeprefix(ENCODER): weight for name, weight in weights.items() if name.startswith(ENCODER)}
        self.encoder = Encoder(spec.encoder, {**own, "embedding": weights["embedding"]}, rope_tables, ops, group)
        self.cross_modifiers = AttentionModifiers(spec.attention_scale, is_causal=False)
        self._cross = [self._cross_weights(f"layers.{i}.cross_") for i in range(spec.num_layers)]
        self._run_encoder = ops.capture(self._encode)

    def _cross_weights(self, prefix: str) -> CrossWeights:
        weights = self._weights
        return CrossWeights(
            norm=self._norm(prefix + "norm"),
            q=weights[prefix + "q"],
            q_bias=weights.get(prefix + "q_bias"),
            kv=weights[prefix + "kv"],
            kv_bias=weights.get(prefix + "kv_bias"),
            o=weights[prefix + "o"],
            o_bias=weights.get(prefix + "o_bias"),
        )

    def encode(self, inputs: EncoderInputs, cache: Cache) -> None:
        """Run the encoder, and write the keys and values that decoder layers make of the encoding to the cache."""
        self._run_encoder(inputs, cache)

    def _encode(self, inputs: EncoderInputs, cache: Cache) -> None:
        hidden = self.encoder.forward(inputs.step, cache)
        for i, cross in enumerate(self._cross):
            keys_values = self._ops.linear(hidden, cross.kv, cross.kv_bias, None)
            self._ops.write_keys_values(keys_values, cache, i, inputs.writes)

    def _serial(self, layer: LayerWeights, residual: Tensor, x: Tensor, step: LayerInputs) -> Tensor:
        scale, cross = self._spec.residual_scale, self._cross[layer.index]
        x = self._sum(self._attention(layer, x, step))
        x = cross.norm.add(residual, x, scale)
        x = self._sum(self._cross_attention(cross, layer.index, x, step))
        x = layer.mlp_norm.add(residual, x, scale)
        x = self._sum(self._run_mlp(layer.mlp, x))
        return layer.next_norm.add(residual, x, scale)

    def _cross_attention(self, cross: CrossWeights, index: int, x: Tensor, step: LayerInputs) -> Tensor:
        queries = self._ops.linear(x, cross.q, cross.q_bias, None)
        x = self._ops.attend(queries, self.heads, step.cache, index, step.cross_plan, self.cross_modifiers)
        return self._ops.linear(x, cross.o, cross.o_bias, None)
