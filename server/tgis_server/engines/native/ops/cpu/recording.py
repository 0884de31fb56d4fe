"""Turns a function over tensors, such as a model's forward pass, into a program that one call runs.

The function is called once, with :class:`Value` objects in place of tensors; each operation that it calls is recorded.
Afterwards the values are placed in buffers: one that is no longer needed makes room for a later one. In every step, the
buffers get as many rows as the step has tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tgis_server.engines.native.ops.cpu import interface
from tgis_server.engines.native.ops.cpu.interface import COLUMNS

CACHE_LINE = 64
PAGE = 4096  # rows that are a multiple of it apart would compete for the same lines of the first-level cache


@dataclass(slots=True, eq=False)
class Value:
    """What stands for a tensor of one row per token while a program is recorded."""

    recording: Recording
    width: int  # elements of a row
    dtype: torch.dtype
    last_use: int = 0  # index of an operation
    buffer: int = -1

    @property
    def row_bytes(self) -> int:
        num_bytes = -(-self.width // COLUMNS) * COLUMNS * self.dtype.itemsize
        return num_bytes + 2 * CACHE_LINE if num_bytes % PAGE == 0 else num_bytes


@dataclass(frozen=True, slots=True)
class PlanSlot:
    """What stands for an attention plan while a program is recorded."""

    recording: Recording
    index: int
    scratch: Value | None  # the place of keys and values that are not cached


@dataclass(frozen=True, slots=True)
class Call:
    """An operation of the library: its function, and the fields of its arguments, some of which are values."""

    name: str
    arguments: type[ctypes.Structure]
    fields: dict[str, Any]

    @property
    def label(self) -> str:
        """The operation's name and the widths of its tensors: ``tgis::linear 576 1536``."""
        widths = (str(value.width) for value in self.fields.values() if isinstance(value, Value))
        return " ".join([self.name.replace("_", "::", 1), *widths])


@dataclass(frozen=True, slots=True)
class PythonCall:
    """A function that changes a value in place, such as a sum over ranks."""

    function: Callable[[Tensor], object]
    value: Value


@dataclass(slots=True)
class Recording:
    """The operations that were called, in order."""

    calls: list[Call | PythonCall] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)  # tensors whose addresses are in arguments

    def value(self, width: int, dtype: torch.dtype) -> Value:
        value = Value(self, width, dtype, len(self.calls))
        self.values.append(value)
        return value

    def call(self, name: str, arguments: type[ctypes.Structure], **fields: Any) -> None:
        for value in fields.values():
            if isinstance(value, Value):
                value.last_use = len(self.calls)
        self.calls.append(Call(name, arguments, fields))

    def call_python(self, function: Callable[[Tensor], object], value: Value) -> None:
        value.last_use = len(self.calls)
        self.calls.append(PythonCall(function, value))

    def keep(self, tensor: Tensor | None) -> int | None:
        """The address of a tensor that lives as long as the program."""
        if tensor is None:
            return None
        self.kept.append(tensor)
        return tensor.data_ptr()


class Program:
    """A recording, placed in buffers and ready to run."""

    def __init__(self, library: Any, kernels: int, recording: Recording, pinned: list[Value]) -> None:
        """``pinned``: values that keep their buffers, because they are given or returned."""
        self._library = library
        self._handle = library.tgis_new_program(kernels)
        self._kept = recording.kept
        self.row_bytes = place(recording, pinned)
        self._labels: list[str] = []  # of operations, in profiles
        self._runs: list[tuple[int, int, PythonCall | None]] = []  # operations, and what follows them
        first = position = 0
        for call in recording.calls:
            if isinstance(call, Call):
                fields = {k: v.buffer if isinstance(v, Value) else v for k, v in call.fields.items()}
                getattr(library, call.name)(self._handle, call.arguments(**fields))
                position = library.tgis_num_ops(self._handle)
                self._labels += [call.label] * (position - len(self._labels))
            else:
                self._runs.append((first, position, call))
                first = position
        self._runs.append((first, position, None))

    def __del__(self) -> None:
        self._library.tgis_delete_program(self._handle)

    def run(self, num_tokens: int, buffers: Any, rows: Any, view: Callable[[Value], Tensor]) -> None:
        """``buffers`` and ``rows`` are arrays of the interface's structures; ``view`` gives a value's tensor."""
        step = interface.Step(num_tokens, torch.get_num_threads(), buffers, rows)
        for first, last, then in self._runs:
            if torch.autograd._profiler_enabled():  # type: ignore[attr-defined]
                for index in range(first, last):
                    with torch.profiler.record_function(self._labels[index]):
                        self._library.tgis_run(self._handle, index, index + 1, step)
            elif first < last:
                self._library.tgis_run(self._handle, first, last, step)
            if then is not None:
                value = view(then.value)
                dense = value.contiguous()  # as functions such as gloo's expect; lines of buffers are padded
                then.function(dense)
                if dense is not value:
                    value.copy_(dense)


def place(recording: Recording, pinned: list[Value]) -> list[int]:
    """Give each value a buffer; returns the bytes of a row of each buffer."""
    for value in pinned:
        value.last_use = len(recording.calls)
    row_bytes: list[int] = []
    free: list[int] = []
    live: list[Value] = []
    for value in pinned:
        assign(value, [], row_bytes)
    for index, call in enumerate(recording.calls):
        values = [v for v in call.fields.values() if isinstance(v, Value)] if isinstance(call, Call) else [call.value]
        for value in values:
            if value.buffer < 0:
                assign(value, free, row_bytes)
                live.append(value)
        ended = [value for value in live if value.last_use == index]
        free.extend(value.buffer for value in ended)
        live = [value for value in live if value.last_use != index]
    return row_bytes


def assign(value: Value, free: list[int], row_bytes: list[int]) -> None:
    """Take the free buffer that fits best, or a new one."""
    needed = value.row_bytes
    if free:
        best = min(free, key=lambda buffer: abs(row_bytes[buffer] - needed))
        free.remove(best)
        row_bytes[best] = max(row_bytes[best], needed)
        value.buffer = best
    else:
        row_bytes.append(needed)
        value.buffer = len(row_bytes) - 1


class Arena:
    """Memory for the buffers of one step at a time, shared by programs. It grows to what the largest step needs."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def reserve(self, num_bytes: int) -> Tensor:
        if num_bytes > len(self._memory):
            self._memory = torch.empty(0, dtype=torch.uint8)  # freed first
            self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory
