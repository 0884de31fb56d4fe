"""From logits to token ids for a batch of rows with different parameters, in the API's order of steps.

(-) mask of a grammar; (a) end tokens masked below min_new_tokens, otherwise length penalty; (b) repetition penalty; (c)
temperature; (d) top_k; (e) top_p; (f) typical_p; (g) choice. Greedy rows skip (c) to (f). Each processor gets only the
rows that use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.sampling.choice import choose_greedy, choose_sampled
from tgis_server.engines.sampling.details import DetailTensors, compute_details
from tgis_server.engines.sampling.processors import (
    keep_allowed,
    keep_top_k_,
    keep_top_p_,
    keep_typical_,
    mask_ends_,
    penalize_repetition,
    raise_ends_,
)
from tgis_server.engines.sampling.seen import SeenTokens
from tgis_server.engines.sampling.staging import Staging
from tgis_server.engines.sampling.uniform import uniform
from tgis_server.wire.messages import SamplingParams, TokenIds, Wanted

MAX_GROWTH = 1e30  # limit of a length penalty: far beyond any logit, yet finite in float32
MAX_END_SETS = 64  # sets kept on the device; requests rarely choose their own end tokens


class SamplingRow(NamedTuple):  # hundreds are created per step; a dataclass takes four times as long
    """A row of a batch for which a token is chosen."""

    slot: int
    token_index: int  # index of the new token among the sequence's generated tokens
    params: SamplingParams
    wanted: Wanted
    seed: int = 0  # of the random draws
    end_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Sampled:
    """The chosen tokens and their details, on the device."""

    ids: Tensor  # (rows,) int64
    scores: Tensor  # (rows, vocab) float32, after all processors; dropped ids are -inf
    detail_rows: list[int]  # rows that want details of generated tokens
    details: DetailTensors | None  # one entry per detail row
    seen_rows: Tensor | None  # rows of ``SeenTokens`` for the rows with a repetition penalty
    seen_ids: Tensor | None  # the new tokens of these rows


class Sampler:
    """Samples on one device.

    ``start`` and ``stop`` mark the beginning and the end of a sequence in a slot. Each step calls ``sample`` and, once
    nothing more can fail, ``note``: a step that runs out of memory before ``note`` can be repeated.
    """

    def __init__(self, vocab_size: int, staging: Staging) -> None:
        self._vocab_size = vocab_size
        self._staging = staging
        self._end_sets: dict[frozenset[int], Tensor] = {}
        self._seen = SeenTokens(vocab_size, staging)

    def start(self, slot: int, token_ids: TokenIds, params: SamplingParams) -> None:
        """Start a sequence in a slot. ``token_ids``: its prompt and, after a preemption, its output so far."""
        self._seen.stop(slot)
        if params.repetition_penalty != 1.0:
            self._seen.start(slot, token_ids)

    def stop(self, slot: int) -> None:
        self._seen.stop(slot)

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow], masks: Mapping[int, bytes] | None = None) -> Sampled:
        """Choose one token per row.

        Args:
            logits: (rows, vocab) float32, changed in place.
            rows: in the order of ``logits``.
            masks: the allowed tokens, by index into ``rows``; see ``Masks``.
        """
        scores = self._keep_allowed(logits, masks) if masks else logits
        scores = self._process_ends(scores, rows)
        penalized = [i for i, row in enumerate(rows) if row.params.repetition_penalty != 1.0]
        seen_rows = self._seen.rows([rows[i].slot for i in penalized]) if penalized else None
        if seen_rows is not None:
            penalty = self._column([rows[i].params.repetition_penalty for i in penalized], torch.float32)
            scores = self._on_rows(
                scores, penalized, lambda part: penalize_repetition(part, self._seen.flags(seen_rows), penalty)
            )
        scores = self._warp(scores, rows)
        ids = self._choose(scores, rows)
        seen_ids = self._pick(ids, penalized) if penalized else None
        detail_rows, details = self._details(scores, ids, rows)
        return Sampled(ids, scores, detail_rows, details, seen_rows, seen_ids)

    def note(self, sampled: Sampled) -> None:
        """Add the tokens of ``sampled`` to their sequences."""
        if sampled.seen_rows is not None and sampled.seen_ids is not None:
            self._seen.add(sampled.seen_rows, sampled.seen_ids)

    def _keep_allowed(self, scores: Tensor, masks: Mapping[int, bytes]) -> Tensor:
        """(-)"""
        size = -(-self._vocab_size // 8)
        packed = np.frombuffer(
            bytearray().join(mask[:size].ljust(size, b"\0") for mask in masks.values()), dtype=np.uint8
        )
        bits = self._staging.put(packed.reshape(len(masks), size), torch.uint8)
        return self._on_rows(scores, list(masks), lambda part: keep_allowed(part, bits))

    def _process_ends(self, scores: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """(a)"""
        masked = [i for i, row in enumerate(rows) if row.token_index < row.params.min_new_tokens]
        for end_ids, group in self._by_end_ids(masked, rows):
            mask_ends_(scores, self._staging.put(group, torch.int64), end_ids)
        growth = {i: g for i, row in enumerate(rows) if (g := _length_growth(row)) > 0.0}
        for end_ids, group in self._by_end_ids(growth, rows):
            factors = self._column([growth[i] for i in group], torch.float32)
            raise_ends_(scores, self._staging.put(group, torch.int64), end_ids, factors)
        return scores

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
        detail_rows = [i for i, row in enumerate(rows) if row.wanted.generated_tokens and row.wanted.any]
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


def _length_growth(row: SamplingRow) -> float:
    """Growth of the end tokens' logits, relative to their absolute values; 0 if the penalty does not apply."""
    penalty = row.params.length_penalty
    if penalty is None or row.token_index < row.params.min_new_tokens or row.token_index <= penalty.start_index:
        return 0.0
    try:
        return min(penalty.decay_factor ** (row.token_index - penalty.start_index) - 1.0, MAX_GROWTH)
    except OverflowError:
        return MAX_GROWTH
