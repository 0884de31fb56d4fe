"""The sampling operations, compiled for a CPU: one call does all steps of all rows.

They are ``sampling.h`` of the native engine's CPU operations; structures are laid out as in its ``core.h``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.sampling.api import Sampled, SamplingRow, SeenRows
from tgis_server.engines.sampling.details import TIES_FACTOR, DetailTensors
from tgis_server.engines.sampling.masks import pack_masks
from tgis_server.engines.sampling.uniform import uniform

GREEDY, SAMPLED, GIVEN = range(3)
NONE = -1  # instead of an index
DROPS_ENDS = -1.0  # instead of a growth of end tokens

ROW = np.dtype(
    [
        *[(name, np.int64) for name in ("allowed", "seen", "first_end", "num_ends", "top_k", "top_n", "detail")],
        *[(name, np.float64) for name in ("top_p", "typical_p", "draw")],
        *[(name, np.float32) for name in ("end_growth", "penalty", "temperature")],
        ("choice", np.int32),
    ]
)
Row: TypeAlias = tuple[int, int, int, int, int, int, int, float, float, float, float, float, float, int]


class Arguments(ctypes.Structure):
    """``SamplingArgs`` of `core.h`."""

    _fields_ = [
        ("rows", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("vocab_size", ctypes.c_int64),
        ("scores", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("allowed", ctypes.c_void_p),
        ("seen", ctypes.c_void_p),
        ("end_ids", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("is_finite", ctypes.c_void_p),
        ("logprobs", ctypes.c_void_p),
        ("ranks", ctypes.c_void_p),
        ("top_ids", ctypes.c_void_p),
        ("top_logprobs", ctypes.c_void_p),
        ("width", ctypes.c_int64),
    ]


class CompiledSampling:
    """Implements ``SamplingOps`` with the kernels of one instruction set.

    Args:
        library: the compiled operations, whose functions are declared.
        kernels: what its ``tgis_kernels`` returned.
        num_threads: share the rows of a call.
    """

    def __init__(self, library: ctypes.CDLL, kernels: int, num_threads: int) -> None:
        self._library = library
        self._kernels = kernels
        self._num_threads = num_threads
        self._no_details = _empty_details(0, 0, 0)

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], masks: Mapping[int, bytes], seen: SeenRows | None
    ) -> Sampled:
        detail_rows = [i for i, row in enumerate(rows) if row.has_details]
        detail_of = {row: detail for detail, row in enumerate(detail_rows)}
        mask_of = {row: line for line, row in enumerate(masks)}
        seen_of = dict(zip(seen.rows, seen.lines.tolist(), strict=True)) if seen else {}
        end_ids: list[int] = []
        table = [
            _row(row, mask_of.get(i, NONE), seen_of.get(i, NONE), detail_of.get(i, NONE), end_ids)
            for i, row in enumerate(rows)
        ]
        allowed = torch.from_numpy(pack_masks(masks, logits.shape[1])) if masks else None
        ids = torch.empty(len(rows), dtype=torch.int64)
        room = self._no_details
        if detail_rows:
            largest_n = max(rows[i].wanted.top_n for i in detail_rows)
            room = _empty_details(len(detail_rows), largest_n, logits.shape[1])
        is_finite, details = self._run(logits, table, ids, room, allowed, seen, end_ids)
        return Sampled(ids, is_finite, logits, detail_rows, details if detail_rows else None)

    def describe(self, logits: Tensor, ids: Tensor, top_n: int) -> tuple[Tensor, DetailTensors]:
        table: list[Row] = [
            (NONE, NONE, 0, 0, 0, top_n, i, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, GIVEN) for i in range(len(ids))
        ]
        return self._run(logits, table, ids, _empty_details(len(ids), top_n, logits.shape[1]))

    def _run(
        self,
        logits: Tensor,
        table: list[Row],
        ids: Tensor,
        details: DetailTensors,
        allowed: Tensor | None = None,
        seen: SeenRows | None = None,
        end_ids: Sequence[int] = (),
    ) -> tuple[Tensor, DetailTensors]:
        """Fills ``ids``, unless they are given, and ``details``; also returns which rows of logits are finite."""
        assert logits.dtype == torch.float32, logits.dtype
        assert logits.stride(1) == 1, "the logits of a row are not side by side"
        rows, ends = np.array(table, dtype=ROW), np.array(end_ids, dtype=np.int64)
        is_finite = torch.empty(len(table), dtype=torch.bool)
        arguments = Arguments(
            rows=rows.ctypes.data,
            num_rows=len(table),
            vocab_size=logits.shape[1],
            scores=logits.data_ptr(),
            stride=logits.stride(0),
            allowed=None if allowed is None else allowed.data_ptr(),
            seen=None if seen is None else seen.flags.data_ptr(),
            end_ids=ends.ctypes.data,
            ids=ids.data_ptr(),
            is_finite=is_finite.data_ptr(),
            logprobs=details.logprobs.data_ptr(),
            ranks=details.ranks.data_ptr(),
            top_ids=details.top_ids.data_ptr(),
            top_logprobs=details.top_logprobs.data_ptr(),
            width=details.top_ids.shape[1],
        )
        self._library.tgis_sample(self._kernels, ctypes.byref(arguments), self._num_threads)
        return is_finite, details


def _row(row: SamplingRow, mask: int, seen: int, detail: int, end_ids: list[int]) -> Row:
    """The row as ``ROW`` has it. Appends its end ids if it changes their scores."""
    params = row.params
    growth = DROPS_ENDS if row.masks_ends else row.end_growth
    first_end = len(end_ids)
    if growth:
        end_ids.extend(row.end_ids)
    return (
        mask,
        seen,
        first_end,
        len(end_ids) - first_end,
        params.top_k,
        row.wanted.top_n,
        detail,
        params.top_p,
        params.typical_p,
        0.0 if params.is_greedy else uniform(row.seed, row.token_index),
        growth,
        params.repetition_penalty,
        params.temperature,
        GREEDY if params.is_greedy else SAMPLED,
    )


def _empty_details(num_details: int, largest_n: int, vocab_size: int) -> DetailTensors:
    width = min(TIES_FACTOR * largest_n, vocab_size)
    return DetailTensors(
        torch.empty(num_details, dtype=torch.float32),
        torch.empty(num_details, dtype=torch.int64),
        torch.empty(num_details, width, dtype=torch.int64),
        torch.empty(num_details, width, dtype=torch.float32),
    )
