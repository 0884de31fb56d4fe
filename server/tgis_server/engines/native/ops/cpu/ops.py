"""The operations of the compiled library, behind the interface that models call.

Models do not compute when they call these operations: they record a program (``recording.py``), which then runs in one
call per step. Called with tensors instead, an operation is recorded and run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
    LoraView,
    StepRows,
    WeightPart,
)
from tgis_server.engines.native.ops.cpu import interface
from tgis_server.engines.native.ops.cpu.captured import Captured, CpuPlan
from tgis_server.engines.native.ops.cpu.interface import COLUMNS
from tgis_server.engines.native.ops.cpu.memory import CpuCache, CpuWeight, WeightMemory
from tgis_server.engines.native.ops.cpu.recording import Arena, PlanSlot, Value
from tgis_server.engines.native.ops.torch_attention.bias import bias_by_distance
from tgis_server.engines.sampling.compiled import CompiledSampling
from tgis_server.engines.sampling.staging import Staging

DTYPES = {torch.float32: interface.FLOAT32, torch.bfloat16: interface.BFLOAT16}
NORMS = {None: 0, "rms": 1, "rms_plus_one": 1, "layer": 2, "layer_plus_one": 2}  # NormKind
ACTIVATIONS: dict[spec.Activation, int] = {
    "silu": 0,
    "gelu": 1,
    "gelu_tanh": 2,
    "relu": 3,
    "relu_squared": 4,
    "swigluoai": 5,
}
SCORINGS: dict[spec.Scoring, int] = {"softmax": 0, "sigmoid": 1, "sparsemixer": 2}
NONE = -1  # no buffer
UNCACHED_BLOCK = 64  # tokens


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """Lines of a rope table."""

    table: Tensor
    lines: Value


class CpuNorm:
    """A norm over the last dimension. The sums are float32, and nothing is rounded in between."""

    def __init__(
        self, ops: CpuOps, kind: spec.Norm | None, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> None:
        self.kind = NORMS[kind]
        self.weight = None if weight is None else weight.float().contiguous()
        if kind in ("rms_plus_one", "layer_plus_one") and self.weight is not None:
            self.weight = self.weight + 1
        self.bias = None if bias is None else bias.float().contiguous()
        self.eps = eps
        self._ops = ops

    def __call__(self, x: Any) -> Any:
        return x if self.kind == 0 else self._ops.norm(self, x)

    def add(self, residual: Any, x: Any, scale: float) -> Any:
        return self._ops.add_norm(self, residual, x, scale)


class CpuOps:
    """Implements ``Ops``; see ``api.py`` for shapes."""

    def __init__(self, library: Any, kernels: str, dtype: torch.dtype) -> None:
        self._library = library
        self.kernels = kernels
        self._kernels: int = library.tgis_kernels(kernels.encode())
        assert self._kernels, f"the library has no kernels for {kernels}"
        self._dtype = dtype
        self._code = DTYPES[dtype]
        is_wide = library.tgis_input_bytes(self._kernels, self._code) == 4
        self._input_dtype = torch.float32 if is_wide else torch.bfloat16
        self._weights = WeightMemory()
        self._arena, self._head_arena = Arena(), Arena()
        self._heads: dict[tuple[CpuWeight, int | None], Captured] = {}

    def capture(self, function: Callable[[Any, Any], Any]) -> Captured:
        return Captured(self._library, self._kernels, function, self._arena)

    # -- Weights

    def pack(self, weight: WeightPart) -> CpuWeight:
        assert weight.format == "plain", f"no implementation multiplies {weight.format} weights"
        plain = weight.tensors["weight"]
        plain = plain if plain.stride(1) == 1 else plain.contiguous()
        num_outputs, num_inputs = plain.shape
        library, kernels, code = self._library, self._kernels, self._code
        address, memory = self._weights.take(library.tgis_packed_bytes(kernels, code, num_inputs, num_outputs))
        num_threads = torch.get_num_threads()
        library.tgis_pack(
            kernels, code, plain.data_ptr(), plain.stride(0), num_inputs, num_outputs, address, num_threads
        )
        return CpuWeight(address, num_outputs, num_inputs, memory)

    def make_sampling(self, vocab_size: int, staging: Staging) -> CompiledSampling:
        return CompiledSampling(self._library, self._kernels, torch.get_num_threads())

    def make_norm(self, kind: spec.Norm | None, weight: Tensor | None, bias: Tensor | None, eps: float) -> CpuNorm:
        return CpuNorm(self, kind, weight, bias, eps)

    # -- Operations on tokens

    def linear(self, x: Any, weight: CpuWeight, bias: Tensor | None, lora: LoraView | None) -> Any:
        assert lora is None, "the compiled operations have no adapters"
        if isinstance(x, Tensor):
            return self._run_at_once(lambda x, _: self.linear(x, weight, bias, None), x)
        recording, output = x.recording, x.recording.value(weight.num_outputs, torch.float32)
        recording.kept.append(weight)
        recording.call(
            "tgis_linear",
            interface.LinearArgs,
            dtype=self._code,
            input=self._as_input(x),
            output=output,
            num_inputs=weight.num_inputs,
            num_outputs=weight.num_outputs,
            weight=weight.address,
            bias=recording.keep(None if bias is None else pad(bias.float())),
        )
        return output

    def logits(self, hidden: Tensor, weight: CpuWeight, bias: Tensor | None) -> Tensor:
        head = weight, None if bias is None else bias.data_ptr()
        if head not in self._heads:
            run = Captured(
                self._library, self._kernels, lambda x, _: self.linear(x, weight, bias, None), self._head_arena
            )
            self._heads[head] = run
        logits: Tensor = self._heads[head](hidden, None)
        return logits

    def norm(self, norm: CpuNorm, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self._run_at_once(lambda x, _: self.norm(norm, x), x)
        output = x.recording.value(x.width, torch.float32)
        self._norm(norm, x, None, output, 1.0)
        return output

    def add_norm(self, norm: CpuNorm, residual: Any, x: Any, scale: float) -> Any:
        if isinstance(x, Tensor):
            return self._run_at_once(lambda inputs, _: self.add_norm(norm, inputs[0], inputs[1], scale), (residual, x))
        output = residual if norm.kind == 0 else residual.recording.value(residual.width, self._input_dtype)
        self._norm(norm, residual, x, None if norm.kind == 0 else output, scale)
        return output

    def _norm(self, norm: CpuNorm, residual: Value, addend: Value | None, output: Value | None, scale: float) -> None:
        recording = residual.recording
        recording.call(
            "tgis_norm",
            interface.NormArgs,
            dtype=self._code,
            kind=norm.kind,
            residual=residual,
            addend=NONE if addend is None else addend,
            output=NONE if output is None else output,
            to_input=output is not None and output.dtype == self._input_dtype,
            width=residual.width,
            weight=recording.keep(norm.weight),
            bias=recording.keep(norm.bias),
            eps=norm.eps,
            scale=scale,
        )

    def make_activation(self, name: spec.Activation, *, is_gated: bool) -> Callable[[Any], Any]:
        def activate(x: Any) -> Any:
            if isinstance(x, Tensor):
                return self._run_at_once(lambda x, _: activate(x), x)
            return self._activate(name, x, x.width // 2 if is_gated else x.width, is_gated=is_gated)

        return activate

    def _activate(self, name: spec.Activation, x: Value, width: int, *, is_gated: bool, num_lines: int = 0) -> Value:
        output = x.recording.value(lines_width(num_lines, width) if num_lines else width, self._input_dtype)
        x.recording.call(
            "tgis_activation",
            interface.ActivationArgs,
            dtype=self._code,
            kind=ACTIVATIONS[name],
            is_gated=is_gated,
            input=x,
            output=output,
            width=width,
            num_lines=num_lines,
        )
        return output

    def mix(self, x: Any, scores: Any, experts: Experts, shared: Any, shared_gate: Any) -> Any:
        if isinstance(x, Tensor):

            def run(inputs: Any, _: object) -> Any:
                x, scores, shared, shared_gate = inputs
                return self.mix(x, scores, experts, shared, shared_gate)

            return self._run_at_once(run, (x, scores, shared, shared_gate))
        recording, mixture = x.recording, experts.mixture
        choice = recording.value(interface.CHOICE_WORDS * mixture.num_chosen, torch.float32)
        shape = {"choice": choice, "num_experts": mixture.num_experts, "num_chosen": mixture.num_chosen}
        recording.call(
            "tgis_choose",
            interface.ChooseArgs,
            **shape,
            scoring=SCORINGS[mixture.scoring],
            scores=scores,
            num_groups=mixture.num_groups,
            num_chosen_groups=mixture.num_chosen_groups,
            bias=recording.keep(as_floats(experts.choice_bias)),
            is_normalized=mixture.is_normalized,
            scale=mixture.scale,
            jitter=mixture.jitter,
        )
        single = self._as_input(x)
        lines = recording.value(lines_width(mixture.num_chosen, x.width), self._input_dtype)
        recording.call(
            "tgis_gather",
            interface.GatherArgs,
            **shape,
            dtype=self._code,
            input=single,
            output=lines,
            width=x.width,
        )
        lines = self._run_experts(shape, lines, experts.up, experts.up_bias, single)
        inner = experts.down[0].num_inputs
        lines = self._activate(
            experts.activation, lines, inner, is_gated=experts.is_gated, num_lines=mixture.num_chosen
        )
        lines = self._run_experts(shape, lines, experts.down, experts.down_bias, None)
        output = recording.value(x.width, torch.float32)
        recording.call(
            "tgis_combine",
            interface.CombineArgs,
            **shape,
            input=lines,
            output=output,
            shared=NONE if shared is None else shared,
            gate=NONE if shared_gate is None else shared_gate,
            width=x.width,
        )
        return output

    def _run_experts(
        self, shape: dict[str, Any], lines: Value, weights: Sequence[CpuWeight], biases: Tensor | None, single: Any
    ) -> Value:
        recording, first = lines.recording, weights[0]
        output = recording.value(lines_width(shape["num_chosen"], first.num_outputs), torch.float32)
        recording.kept.append(weights)
        recording.call(
            "tgis_experts",
            interface.ExpertsArgs,
            **shape,
            dtype=self._code,
            input=lines,
            output=output,
            single=NONE if single is None else single,
            num_inputs=first.num_inputs,
            num_outputs=first.num_outputs,
            weights=recording.keep(torch.tensor([weight.address for weight in weights])),
            biases=recording.keep(None if biases is None else pad(biases.float()).contiguous()),
        )
        return output

    def embed(self, ids: Any, table: Tensor, first_id: int, num_ids: int, scale: float) -> Any:
        if isinstance(ids, Tensor):
            return self._run_at_once(lambda ids, _: self.embed(ids, table, first_id, num_ids, scale), ids)
        output = ids.recording.value(table.shape[1], torch.float32)
        self._embed(ids, table, output, first_id=first_id, scale=scale, adds=False)
        return output

    def add_rows(self, x: Any, table: Tensor, rows: Any) -> Any:
        if isinstance(x, Tensor):
            return self._run_at_once(lambda inputs, _: self.add_rows(inputs[0], table, inputs[1]), (x, rows))
        self._embed(rows, table, x, first_id=0, scale=1.0, adds=True)
        return x

    def _embed(self, ids: Value, table: Tensor, output: Value, **fields: Any) -> None:
        recording, table = output.recording, table.contiguous()
        recording.call(
            "tgis_embed",
            interface.EmbedArgs,
            dtype=DTYPES[table.dtype],
            ids=ids,
            output=output,
            width=table.shape[1],
            num_rows=table.shape[0],
            table=recording.keep(table),
            **fields,
        )

    def sum_squares(self, x: Any, sizes: tuple[int, int]) -> Any:
        if isinstance(x, Tensor):
            return self._run_at_once(lambda x, _: self.sum_squares(x, sizes), x)
        output = x.recording.value(2, torch.float32)
        x.recording.call("tgis_squares", interface.SquaresArgs, input=x, output=output, first=sizes[0], second=sizes[1])
        return output

    def rescale(
        self, x: Any, squares: Any, sizes: tuple[int, int], counts: tuple[int, int], weight: Tensor, eps: float
    ) -> Any:
        if isinstance(x, Tensor):
            return self._run_at_once(
                lambda inputs, _: self.rescale(inputs[0], inputs[1], sizes, counts, weight, eps), (x, squares)
            )
        x.recording.call(
            "tgis_rescale",
            interface.RescaleArgs,
            tokens=x,
            squares=squares,
            first=sizes[0],
            second=sizes[1],
            first_count=counts[0],
            second_count=counts[1],
            weight=x.recording.keep(as_floats(weight)),
            eps=eps,
        )
        return x

    def add(self, x: Any, y: Any) -> Any:
        if isinstance(x, Tensor):
            return self._run_at_once(lambda inputs, _: self.add(*inputs), (x, y))
        self._add(x, y, x)
        return x

    def limit(self, x: Any, largest: float) -> Any:
        if isinstance(x, Tensor):
            return self._run_at_once(lambda x, _: self.limit(x, largest), x)
        self._add(x, None, x, largest)
        return x

    def _add(self, first: Value, second: Value | None, output: Value, largest: float = 0.0) -> None:
        first.recording.call(
            "tgis_add",
            interface.AddArgs,
            dtype=self._code,
            first=first,
            second=NONE if second is None else second,
            output=output,
            to_input=output.dtype == self._input_dtype,
            width=first.width,
            largest=largest,
        )

    def _as_input(self, x: Value) -> Value:
        """``x`` in the dtype of a linear layer's input."""
        if x.dtype == self._input_dtype:
            return x
        output = x.recording.value(x.width, self._input_dtype)
        self._add(x, None, output)
        return output

    def apply(self, function: Callable[[Tensor], object], x: Any) -> Any:
        if isinstance(x, Tensor):
            function(x)
        else:
            x.recording.call_python(function, x)
        return x

    # -- Attention

    def make_cache(self, shape: CacheShape) -> CpuCache:
        blocks = interface.CacheShape(self._code, shape.block_size, shape.heads.num_kv_heads, shape.heads.head_dim)
        return CpuCache(shape.num_layers, shape.num_blocks, self._block_bytes(blocks), blocks, self._dtype)

    def _block_bytes(self, shape: interface.CacheShape) -> int:
        num_bytes: int = self._library.tgis_block_bytes(self._kernels, shape)
        return num_bytes

    def order_singles(self, num_keys: np.ndarray, cache: CpuCache) -> np.ndarray | None:
        return None

    def plan_attention(self, rows: StepRows, cache: CpuCache, modifiers: Iterable[AttentionModifiers]) -> CpuPlan:
        host = [np.ascontiguousarray(array, np.int64) for array in (rows.starts, rows.num_tokens, rows.num_keys)]
        slots, tables = rows.slots.contiguous(), rows.tables
        addresses = [array.ctypes.data for array in host]
        c_rows = interface.Rows(len(host[0]), *addresses, slots.data_ptr(), tables.data_ptr(), tables.stride(0))
        return CpuPlan(c_rows, [host, slots, tables])

    def plan_uncached_attention(
        self, lengths: Sequence[int], heads: Heads, modifiers: Iterable[AttentionModifiers]
    ) -> CpuPlan:
        """The sequences get blocks of a cache that is dropped with the plan."""
        counts = np.asarray(lengths, np.int64)
        num_blocks = -(-counts // UNCACHED_BLOCK)
        ends = np.cumsum(num_blocks)
        tables = (ends - num_blocks)[:, None] + np.arange(num_blocks.max(initial=1))
        starts, slots = np.zeros_like(counts), np.arange(len(counts))
        arrays = [starts, counts, counts, slots, np.ascontiguousarray(tables)]
        c_rows = interface.Rows(len(counts), *(array.ctypes.data for array in arrays), tables.shape[1])
        block_bytes = self._block_bytes(self._uncached_shape(heads))
        return CpuPlan(c_rows, arrays, torch.empty(int(ends[-1]) * block_bytes, dtype=torch.uint8))

    def _uncached_shape(self, heads: Heads) -> interface.CacheShape:
        return interface.CacheShape(self._code, UNCACHED_BLOCK, heads.num_kv_heads, heads.head_dim)

    def make_rotation(self, table: Tensor, lines: Any) -> Rotation:
        return Rotation(table.contiguous(), lines)

    def prepare_qkv(
        self,
        qkv: Any,
        heads: Heads,
        rotation: Rotation | None,
        qk_norm: Any,
        cache: CpuCache,
        layer: int,
        plan: Any,
    ) -> Any:
        if isinstance(qkv, Tensor):
            lines = None if rotation is None else rotation.lines

            def run(inputs: Any, cache: CpuCache) -> Any:
                qkv, lines, plan = inputs
                turn = None if rotation is None else Rotation(rotation.table, lines)
                return self.prepare_qkv(qkv, heads, turn, qk_norm, cache, layer, plan)

            return self._run_at_once(run, (qkv, lines, plan), cache)
        self._write(qkv, heads.num_heads, cache.shape, plan, cache.layers[layer], rotation, qk_norm)
        return qkv

    def write_keys_values(self, keys_values: Any, cache: CpuCache, layer: int, plan: Any) -> None:
        if isinstance(keys_values, Tensor):

            def run(inputs: Any, cache: CpuCache) -> None:
                self.write_keys_values(inputs[0], cache, layer, inputs[1])

            self._run_at_once(run, (keys_values, plan), cache)
            return
        self._write(keys_values, 0, cache.shape, plan, cache.layers[layer], None, None)

    def _write(
        self,
        tokens: Value,
        num_heads: int,
        shape: interface.CacheShape,
        plan: PlanSlot,
        layer: Tensor | None,
        rotation: Rotation | None,
        norm: CpuNorm | None,
    ) -> None:
        recording, num_normed = tokens.recording, num_heads + shape.num_kv_heads

        def per_head(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else vector.expand(num_normed, shape.head_dim).contiguous()

        recording.call(
            "tgis_write",
            interface.WriteArgs,
            cache=shape,
            rows=plan.index,
            tokens=tokens,
            num_heads=num_heads,
            positions=NONE if rotation is None else rotation.lines,
            rotary_dim=0 if rotation is None else rotation.table.shape[2],
            rotation=None if rotation is None else recording.keep(rotation.table),
            norm=0 if norm is None else norm.kind,
            norm_weight=None if norm is None else recording.keep(per_head(norm.weight)),
            norm_bias=None if norm is None else recording.keep(per_head(norm.bias)),
            norm_eps=0.0 if norm is None else norm.eps,
            layer=recording.keep(layer),
            scratch=NONE if plan.scratch is None else plan.scratch,
        )

    def attend(
        self, qkv: Any, heads: Heads, cache: CpuCache, layer: int, plan: Any, modifiers: AttentionModifiers
    ) -> Any:
        if isinstance(qkv, Tensor):

            def run(inputs: Any, cache: CpuCache) -> Any:
                return self.attend(inputs[0], heads, cache, layer, inputs[1], modifiers)

            return self._run_at_once(run, (qkv, plan), cache)
        return self._attend(qkv, heads, cache.shape, cache.layers[layer], plan, modifiers)

    def attend_uncached(self, qkv: Any, heads: Heads, plan: Any, modifiers: AttentionModifiers) -> Any:
        if isinstance(qkv, Tensor):
            return self._run_at_once(
                lambda inputs, _: self.attend_uncached(inputs[0], heads, inputs[1], modifiers), (qkv, plan)
            )
        shape = self._uncached_shape(heads)
        self._write(qkv, heads.num_heads, shape, plan, None, None, None)
        return self._attend(qkv, heads, shape, None, plan, modifiers)

    def _attend(
        self,
        qkv: Value,
        heads: Heads,
        shape: interface.CacheShape,
        layer: Tensor | None,
        plan: PlanSlot,
        modifiers: AttentionModifiers,
    ) -> Value:
        recording = qkv.recording
        output = recording.value(heads.num_heads * heads.head_dim, self._input_dtype)
        relative = modifiers.relative_bias
        recording.call(
            "tgis_attend",
            interface.AttendArgs,
            cache=shape,
            rows=plan.index,
            queries=qkv,
            output=output,
            num_heads=heads.num_heads,
            layer=recording.keep(layer),
            scale=modifiers.scale,
            soft_cap=modifiers.soft_cap,
            is_causal=modifiers.is_causal,
            window=modifiers.window or 0,
            alibi_slopes=recording.keep(as_floats(modifiers.alibi_slopes)),
            distance_bias=None if relative is None else recording.keep(bias_by_distance(relative).T.contiguous()),
            max_distance=0 if relative is None else relative.max_distance,
            sinks=recording.keep(as_floats(modifiers.sinks)),
            scratch=NONE if plan.scratch is None else plan.scratch,
        )
        return output

    def _run_at_once(self, function: Callable[[Any, Any], Any], inputs: Any, cache: Any = None) -> Any:
        """Run an operation on tensors, whose dtype the result has too. Tensors that it changes are changed."""
        captured = Captured(self._library, self._kernels, function, Arena())
        result = captured(inputs, cache)
        for tensor, value in captured.given:
            tensor.copy_(value)
        dtypes = [tensor.dtype for tensor, _ in captured.given]
        return result.to(dtypes[0]) if result is not None and dtypes else result


def pad(vectors: Tensor) -> Tensor:
    """Zeros at the end of vectors, up to a multiple of COLUMNS."""
    return functional.pad(vectors, (0, -vectors.shape[-1] % COLUMNS))


def lines_width(num_lines: int, width: int) -> int:
    """Elements of a row with that many lines; see ``lines_of`` in ``core.h``."""
    return num_lines * -(-width // COLUMNS) * COLUMNS


def as_floats(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.float().contiguous()
