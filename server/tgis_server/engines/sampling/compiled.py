"""The sampling operations, compiled for a CPU: one call does all steps of all rows.

They are ``sampling.h`` of the native engine's CPU operations; structures are laid out as in its ``core.h``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.sampling.api import Sampled, SamplingRow, SeenRows
from tgis_server.engines.sampling.details import TIES_FACTOR, DetailTensors
from tgis_server.engines.sampling.masks import pack_masks
from tgis_server.engines.sampling.uniform import uniform

GREEDY, SAMPLED, GIVEN = range(3)
DROPS_ENDS = -1.0  # instead of the growth of end tokens
NO_DETAIL = -1
MAX_END_SETS = 64

ROW = np.dtype(
    [
        ("scores", np.uintp),
        ("allowed", np.uintp),
        ("seen", np.uintp),
        ("end_ids", np.uintp),
        ("num_ends", np.int64),
        ("top_k", np.int64),
        ("top_n", np.int64),
        ("detail", np.int64),
        ("top_p", np.float64),
        ("typical_p", np.float64),
        ("draw", np.float64),
        ("end_growth", np.float32),
        ("penalty", np.float32),
        ("temperature", np.float32),
        ("choice", np.int32),
    ]
)


class Arguments(ctypes.Structure):
    """``SamplingArgs`` of `core.h`."""

    _fields_ = [
        ("rows", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("vocab_size", ctypes.c_int64),
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
        library: the compiled operations.
        kernels: what its ``tgis_kernels`` returned.
        num_threads: share the rows of a call.
    """

    def __init__(self, library: ctypes.CDLL, kernels: int, num_threads: int) -> None:
        self._library = library  # keeps it loaded
        self._call = library.tgis_sample
        self._call.argtypes = [ctypes.c_void_p, ctypes.POINTER(Arguments), ctypes.c_int32]
        self._call.restype = None
        self._kernels = kernels
        self._num_threads = num_threads
        self._end_sets: dict[frozenset[int], np.ndarray] = {}

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], masks: Mapping[int, bytes], seen: SeenRows | None
    ) -> Sampled:
        packed = pack_masks(masks, logits.shape[1])
        allowed = dict(zip(masks, _line_addresses(packed.ctypes.data, packed.shape[1], range(len(masks))), strict=True))
        flags: dict[int, int] = {}
        if seen is not None:
            addresses = _line_addresses(seen.flags.data_ptr(), seen.flags.stride(0), seen.lines.tolist())
            flags = dict(zip(seen.rows, addresses, strict=True))
        detail_rows = [i for i, row in enumerate(rows) if row.has_details]
        detail_of = {row: detail for detail, row in enumerate(detail_rows)}
        scores = _line_addresses(logits.data_ptr(), 4 * logits.stride(0), range(len(rows)))
        lines = [
            self._line(row, address, allowed.get(i, 0), flags.get(i, 0), detail_of.get(i, NO_DETAIL))
            for i, (row, address) in enumerate(zip(rows, scores, strict=True))
        ]
        ids = torch.empty(len(rows), dtype=torch.int64)
        largest_n = max((rows[i].wanted.top_n for i in detail_rows), default=0)
        is_finite, details = self._run(logits, lines, ids, len(detail_rows), largest_n)
        return Sampled(ids, is_finite, logits, detail_rows, details if detail_rows else None)

    def describe(self, logits: Tensor, ids: Tensor, top_n: int) -> tuple[Tensor, DetailTensors]:
        scores = _line_addresses(logits.data_ptr(), 4 * logits.stride(0), range(len(ids)))
        lines = [
            (address, 0, 0, 0, 0, 0, top_n, i, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, GIVEN) for i, address in enumerate(scores)
        ]
        return self._run(logits, lines, ids, len(ids), top_n)

    def _line(self, row: SamplingRow, scores: int, allowed: int, seen: int, detail: int) -> tuple[int | float, ...]:
        """One element of the array of rows, in the order of ``ROW``."""
        params = row.params
        growth = DROPS_ENDS if row.masks_ends else row.end_growth
        ends = self._put_end_ids(row.end_ids) if growth else None
        return (
            scores,
            allowed,
            seen,
            0 if ends is None else ends.ctypes.data,
            0 if ends is None else ends.size,
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

    def _run(
        self, logits: Tensor, lines: list[tuple[int | float, ...]], ids: Tensor, num_details: int, largest_n: int
    ) -> tuple[Tensor, DetailTensors]:
        assert logits.dtype == torch.float32, logits.dtype
        assert logits.stride(1) == 1, "the logits of a row are not side by side"
        rows = np.array(lines, dtype=ROW)
        width = min(TIES_FACTOR * largest_n, logits.shape[1])
        is_finite = torch.empty(len(lines), dtype=torch.bool)
        details = DetailTensors(
            torch.empty(num_details, dtype=torch.float32),
            torch.empty(num_details, dtype=torch.int64),
            torch.empty(num_details, width, dtype=torch.int64),
            torch.empty(num_details, width, dtype=torch.float32),
        )
        arguments = Arguments(
            rows.ctypes.data,
            len(lines),
            logits.shape[1],
            ids.data_ptr(),
            is_finite.data_ptr(),
            details.logprobs.data_ptr(),
            details.ranks.data_ptr(),
            details.top_ids.data_ptr(),
            details.top_logprobs.data_ptr(),
            width,
        )
        self._call(self._kernels, arguments, self._num_threads)
        return is_finite, details

    def _put_end_ids(self, end_ids: frozenset[int]) -> np.ndarray:
        if (ids := self._end_sets.get(end_ids)) is None:
            if len(self._end_sets) == MAX_END_SETS:
                self._end_sets.clear()
            ids = self._end_sets[end_ids] = np.array(sorted(end_ids), dtype=np.int64)
        return ids


def _line_addresses(first: int, stride: int, lines: Sequence[int]) -> list[int]:
    return [first + stride * line for line in lines]
