"""Functions that are recorded at their first call, and run as programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgis_server.engines.native.ops.cpu import interface
from tgis_server.engines.native.ops.cpu.recording import Arena, PlanSlot, Program, Recording, Value


@dataclass(slots=True, eq=False)
class CpuPlan:
    """The rows of a step, and for uncached sequences memory for their keys and values."""

    rows: interface.Rows
    kept: list[Any]  # what the rows point to
    scratch: Tensor | None = None


class Captured:
    """A function that is recorded at its first call and run as a program from then on.

    Its inputs may be nested dataclasses and tuples. Tensors in them have a row for each token; those of int64, such as
    ids, are read where they are. Anything else must be the same in each call, except plans.
    """

    def __init__(self, library: Any, kernels: int, function: Callable[[Any, Any], Any], arena: Arena) -> None:
        self._library, self._kernels = library, kernels
        self._function = function
        self._arena = arena
        self._programs: dict[tuple[object, ...], tuple[Program, list[Value], Value | None]] = {}
        self.given: list[tuple[Tensor, Tensor]] = []  # floating-point inputs of the last call, and their copies

    def __call__(self, inputs: Any, cache: Any) -> Any:
        leaves = list(find_leaves(inputs))
        if any(isinstance(leaf, Value) for leaf in leaves):
            return self._function(inputs, cache)  # as a part of another recording
        key = (id(cache), *(describe_leaf(leaf) for leaf in leaves))
        if key not in self._programs:
            self._programs[key] = self._record(inputs, leaves, cache)
        return self._run(*self._programs[key], leaves)

    def _record(self, inputs: Any, leaves: list[Any], cache: Any) -> tuple[Program, list[Value], Value | None]:
        recording = Recording()
        recording.kept.append(cache)  # while the program lives, no other cache has its id
        given: list[Value] = []
        places: list[Any] = []
        num_plans = 0
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                is_index = leaf.dtype == torch.int64
                given.append(
                    recording.value(1 if is_index else leaf.shape[1], leaf.dtype if is_index else torch.float32)
                )
                places.append(given[-1])
            elif isinstance(leaf, CpuPlan):
                scratch = None
                if leaf.scratch is not None:
                    scratch = recording.value(1, torch.int64)
                    given.append(scratch)
                places.append(PlanSlot(recording, num_plans, scratch))
                num_plans += 1
        result = self._function(replace_leaves(inputs, iter(places)), cache)
        assert result is None or isinstance(result, Value)
        pinned = list(dict.fromkeys([*given, *([] if result is None else [result])]))
        return Program(self._library, self._kernels, recording, pinned), given, result

    def _run(self, program: Program, given: list[Value], result: Value | None, leaves: list[Any]) -> Tensor | None:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        plans = [leaf for leaf in leaves if isinstance(leaf, CpuPlan)]
        num_tokens = len(tensors[0])
        self.given = []  # views of the arena, which may have to grow
        memory = self._arena.reserve(sum(program.row_bytes) * num_tokens)
        buffers = (interface.Buffer * len(program.row_bytes))()
        address, offset, offsets = memory.data_ptr(), 0, []
        for i, row_bytes in enumerate(program.row_bytes):
            buffers[i].data, buffers[i].stride = address + offset, row_bytes
            offsets.append(offset)
            offset += row_bytes * num_tokens

        def view(value: Value) -> Tensor:
            start, stride = offsets[value.buffer], program.row_bytes[value.buffer]
            whole = memory[start : start + num_tokens * stride].view(value.dtype)
            return whole.view(num_tokens, stride // value.dtype.itemsize)[:, : value.width]

        sources = iter([leaf for leaf in leaves if isinstance(leaf, Tensor | CpuPlan)])
        values = iter(given)
        for source in sources:
            tensor = source.scratch if isinstance(source, CpuPlan) else source
            if tensor is None:
                continue
            value = next(values)
            if tensor.is_floating_point():
                self.given.append((tensor, view(value).copy_(tensor)))
            else:
                assert tensor.is_contiguous()
                buffers[value.buffer].data = tensor.data_ptr()
        rows = (interface.Rows * max(1, len(plans)))(*(plan.rows for plan in plans))
        program.run(num_tokens, buffers, rows, view)
        return None if result is None else view(result)


def find_leaves(inputs: Any) -> Iterator[Any]:
    if isinstance(inputs, Tensor | CpuPlan | Value | PlanSlot):
        yield inputs
    elif isinstance(inputs, tuple):
        for part in inputs:
            yield from find_leaves(part)
    elif dataclasses.is_dataclass(inputs):
        for field in dataclasses.fields(inputs):
            yield from find_leaves(getattr(inputs, field.name))
    else:
        yield None


def replace_leaves(inputs: Any, places: Iterator[Any]) -> Any:
    if isinstance(inputs, Tensor | CpuPlan):
        return next(places)
    if isinstance(inputs, tuple):
        return tuple(replace_leaves(part, places) for part in inputs)
    if dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        changed = {f.name: replace_leaves(getattr(inputs, f.name), places) for f in dataclasses.fields(inputs)}
        return dataclasses.replace(inputs, **changed)
    return inputs


def describe_leaf(leaf: Any) -> object:
    """What a program depends on."""
    return (leaf.dtype, leaf.shape[1:]) if isinstance(leaf, Tensor) else type(leaf)
