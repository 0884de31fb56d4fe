"""Reads a rank's share of the weights: only its slices, converted to the run's dtype, one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tgis_server import failures
from tgis_server.engines.api import Progress
from tgis_server.engines.native.checkpoint.inspect import Checkpoint
from tgis_server.engines.native.parameters.pieces import Kind, Parameter, Piece, RankSlice, slice_of
from tgis_server.model_files import ITEM_BYTES

PHASE = "reading weights"
SHORT_RUN = 8  # rows; runs that are not longer are read together with what is between them


def read_parameters(
    checkpoint: Checkpoint, rank: int, dtype: torch.dtype, device: torch.device, progress: Progress
) -> Iterator[tuple[Parameter, Tensor]]:
    """Yield each parameter with this rank's share of it, in the order of the checkpoint's parameters.

    Peak memory stays near the size of the weights if the caller transforms and drops each tensor before it asks for
    the next. Parameters of which this rank holds nothing are skipped.
    """
    item_bytes = ITEM_BYTES[str(dtype).removeprefix("torch.")]
    total = checkpoint.num_elements(rank) * item_bytes
    done = 0
    with ExitStack() as stack:
        open_file = _opener(stack)
        for parameter in checkpoint.parameters:
            tensor = _read_parameter(checkpoint, parameter, rank, dtype, device, open_file)
            done += tensor.numel() * item_bytes
            progress(PHASE, done, total)
            if tensor.numel():
                yield parameter, tensor


def _opener(stack: ExitStack) -> Callable[[Path], Any]:
    """A function that opens each file once; ``stack`` closes all of them."""
    handles: dict[Path, Any] = {}

    def open_file(file: Path) -> Any:
        if file not in handles:
            handles[file] = stack.enter_context(safe_open(file, framework="pt"))
        return handles[file]

    return open_file


def _read_parameter(
    checkpoint: Checkpoint,
    parameter: Parameter,
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
    open_file: Callable[[Path], Any],
) -> Tensor:
    slices = [slice_of(piece, checkpoint.spec, rank, checkpoint.num_shard) for piece in parameter.pieces]
    rows = sum(part.padded_rows for part in slices)
    columns = slices[0].columns
    dtype = torch.float32 if parameter.kind is Kind.CHOICE_BIAS else dtype
    target = torch.empty((rows,) if columns is None else (rows, len(columns)), dtype=dtype, device=device)
    start = 0
    for piece, part in zip(parameter.pieces, slices, strict=True):
        info = checkpoint.tensors[piece.tensor]
        share = target[start : start + part.padded_rows]
        try:
            end = _read_slice(open_file(info.file).get_slice(info.name), piece, part, share)
        except (SafetensorError, OSError) as error:
            raise failures.WEIGHTS_UNREADABLE.error(file=info.file, reason=error) from error
        share[end:].zero_()
        if piece.stored.paired_rows:
            inputs = share.shape[1:] if parameter.kind is Kind.LINEAR else ()
            _unpair(share.view(-1, checkpoint.spec.head_dim, *inputs)[:, : piece.stored.paired_rows])
        start += part.padded_rows
    return target


def _unpair(heads: Tensor) -> None:
    """Reorder rows from the pairs (0, 1), (2, 3), ... to halves: 0, 2, ..., 1, 3, ...; ``heads`` is (heads, rows, ...).

    All our rotations pair the rows i and i + n / 2. Products of queries and keys do not depend on the order of rows.
    """
    pairs = heads.clone()
    middle = heads.shape[1] // 2
    heads[:, :middle] = pairs[:, 0::2]
    heads[:, middle:] = pairs[:, 1::2]


def _read_slice(stored: Any, piece: Piece, part: RankSlice, target: Tensor) -> int:
    """Copy the runs of one piece to the first rows of ``target``. Returns the number of rows copied."""
    index = (piece.stored.index,) if piece.stored.num_stacked else ()
    end = 0
    for first, run_rows, count, stride in _in_steps(part.runs):
        rows = slice(first, first + (count - 1) * stride + run_rows)  # with what is between the runs
        if part.columns is None:
            source = stored[(*index, rows)]
        else:
            columns = slice(part.columns.start, part.columns.stop)
            is_transposed = piece.stored.is_transposed
            source = stored[(*index, columns, rows) if is_transposed else (*index, rows, columns)]
            source = source.T if is_transposed else source
        rest = source.shape[1:]
        share = target[end : end + count * run_rows].view(count, run_rows, *rest)
        share.copy_(source.unfold(0, run_rows, stride).movedim(-1, 1) if count > 1 else source[None])
        end += count * run_rows
    return end


def _in_steps(runs: tuple[range, ...]) -> Iterator[tuple[int, int, int, int]]:
    """Runs that are close together and can be read at once: the first row, rows of a run, number of runs, stride."""
    start = 0
    while start < len(runs):
        first, size = runs[start], len(runs[start])
        stride = runs[start + 1].start - first.start if start + 1 < len(runs) else size
        count = 1
        while (
            size <= SHORT_RUN
            and start + count < len(runs)
            and runs[start + count] == range(first.start + count * stride, first.start + count * stride + size)
        ):
            count += 1
        yield first.start, size, count, stride
        start += count
