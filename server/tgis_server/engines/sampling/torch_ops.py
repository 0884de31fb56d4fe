"""The sampling operations with torch's own kernels, for any device. Each processor gets only the rows that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tgis_server.engines.sampling.api import Sampled, SamplingRow, SeenRows
from tgis_server.engines.sampling.choice import choose_greedy, choose_sampled
from tgis_server.engines.sampling.details import DetailTensors, compute_details
from tgis_server.engines.sampling.finite import are_finite
from tgis_server.engines.sampling.masks import pack_masks
from tgis_server.engines.sampling.processors import (
    keep_allowed,
    keep_top_k_,
    keep_top_p_,
    keep_typical_,
    mask_ends_,
    penalize_repetition,
    raise_ends_,
)
from tgis_server.engines.sampling.staging import Staging
from tgis_server.engines.sampling.uniform import uniform

MAX_END_SETS = 64  # sets kept on the device; requests rarely choose their own end tokens


class TorchSampling:
    """Implements ``SamplingOps`` with torch."""

    def __init__(self, vocab_size: int, staging: Staging) -> None:
        self._vocab_size = vocab_size
        self._staging = staging
        self._end_sets: dict[frozenset[int], Tensor] = {}

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow], masks: Mapping[int, bytes], seen: SeenRows | None
    ) -> Sampled:
        is_finite = are_finite(logits)
        scores = self._keep_allowed(logits, masks) if masks else logits
        scores = self._process_ends(scores, rows)
        if seen is not None:
            scores = self._penalize(scores, rows, seen)
        scores = self._warp(scores, rows)
        ids = self._choose(scores, rows)
        detail_rows, details = self._details(scores, ids, rows)
        return Sampled(ids, is_finite, scores, detail_rows, details)

    def describe(self, logits: Tensor, ids: Tensor, top_n: int) -> tuple[Tensor, DetailTensors]:
        counts = self._column([top_n] * len(ids), torch.int64) if top_n else None
        return are_finite(logits), compute_details(logits, ids, counts, top_n)

    def _keep_allowed(self, scores: Tensor, masks: Mapping[int, bytes]) -> Tensor:
        """(-)"""
        bits = self._staging.put(pack_masks(masks, self._vocab_size), torch.uint8)
        return self._on_rows(scores, list(masks), lambda part: keep_allowed(part, bits))

    def _process_ends(self, scores: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """(a)"""
        masked = [i for i, row in enumerate(rows) if row.masks_ends]
        for end_ids, group in self._by_end_ids(masked, rows):
            mask_ends_(scores, self._staging.put(group, torch.int64), end_ids)
        growth = {i: g for i, row in enumerate(rows) if (g := row.end_growth) > 0.0}
        for end_ids, group in self._by_end_ids(growth, rows):
            factors = self._column([growth[i] for i in group], torch.float32)
            raise_ends_(scores, self._staging.put(group, torch.int64), end_ids, factors)
        return scores

    def _penalize(self, scores: Tensor, rows: Sequence[SamplingRow], seen: SeenRows) -> Tensor:
        """(b)"""
        is_seen = seen.flags.index_select(0, seen.lines)
        penalty = self._column([rows[i].params.repetition_penalty for i in seen.rows], torch.float32)
        return self._on_rows(scores, seen.rows, lambda part: penalize_repetition(part, is_seen, penalty))

    def _by_end_ids(self, indices: Iterable[int], rows: Sequence[SamplingRow]) -> Iterator[tuple[Tensor, list[int]]]:
        """Group rows by their end ids; rows without end ids are left out."""
        groups: dict[frozenset[int], list[int]] = {}
        for i in indices:
            groups.setdefault(rows[i].end_ids, []).append(i)
        for end_ids, group in groups.items():
            if end_ids:
                yield self._put_end_ids(end_ids), group

    def _put_end_ids(self, end_ids: frozenset[int]) -> Tensor:
        if (tensor := self._end_sets.get(end_ids)) is None:
            if len(self._end_sets) == MAX_END_SETS:
                self._end_sets.clear()
            tensor = self._staging.put(sorted(end_ids), torch.int64)
            self._end_sets[end_ids] = tensor
        return tensor

    def _warp(self, scores: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """(c) to (f)"""
        sampled = [i for i, row in enumerate(rows) if not row.params.is_greedy]
        if not sampled:
            return scores
        warm = [i for i in sampled if rows[i].params.temperature != 1.0]
        if warm:
            temperature = self._column([rows[i].params.temperature for i in warm], torch.float32)
            scores = self._on_rows(scores, warm, lambda part: part.div_(temperature))
        top_k = [i for i in sampled if rows[i].params.top_k > 0]
        if top_k:
            counts = [rows[i].params.top_k for i in top_k]
            k = self._column(counts, torch.int64)
            scores = self._on_rows(scores, top_k, lambda part: keep_top_k_(part, k, max(counts)))
        top_p = [i for i in sampled if rows[i].params.top_p < 1.0]
        if top_p:
            p = self._column([rows[i].params.top_p for i in top_p], torch.float64)
            scores = self._on_rows(scores, top_p, lambda part: keep_top_p_(part, p))
        typical = [i for i in sampled if 0.0 < rows[i].params.typical_p < 1.0]
        if typical:
            mass = self._column([rows[i].params.typical_p for i in typical], torch.float64)
            scores = self._on_rows(scores, typical, lambda part: keep_typical_(part, mass))
        return scores

    def _choose(self, scores: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """(g)"""
        sampled = [i for i, row in enumerate(rows) if not row.params.is_greedy]
        if not sampled:
            return choose_greedy(scores)
        draws = self._column([uniform(rows[i].seed, rows[i].token_index) for i in sampled], torch.float64)
        chosen = choose_sampled(self._pick(scores, sampled), draws)
        if len(sampled) == len(rows):
            return chosen
        return choose_greedy(scores).index_copy_(0, self._staging.put(sampled, torch.int64), chosen)

    def _details(
        self, scores: Tensor, ids: Tensor, rows: Sequence[SamplingRow]
    ) -> tuple[list[int], DetailTensors | None]:
        detail_rows = [i for i, row in enumerate(rows) if row.has_details]
        if not detail_rows:
            return [], None
        counts = [rows[i].wanted.top_n for i in detail_rows]
        top_n = self._column(counts, torch.int64) if any(counts) else None
        details = compute_details(self._pick(scores, detail_rows), self._pick(ids, detail_rows), top_n, max(counts))
        return detail_rows, details

    def _on_rows(self, scores: Tensor, rows: list[int], process: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply a processor to some rows; nothing is copied if these are all the rows."""
        if len(rows) == scores.shape[0]:
            return process(scores)
        index = self._staging.put(rows, torch.int64)
        return scores.index_copy_(0, index, process(scores.index_select(0, index)))

    def _pick(self, tensor: Tensor, rows: list[int]) -> Tensor:
        if len(rows) == tensor.shape[0]:
            return tensor
        return tensor.index_select(0, self._staging.put(rows, torch.int64))

    def _column(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return self._staging.put(values, dtype)[:, None]
