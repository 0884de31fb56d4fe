"""Samples for the slots of one device: keeps what sequences have seen, and calls the operations of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tgis_server.engines.sampling.api import Sampled, SamplingOps, SamplingRow, SeenRows
from tgis_server.engines.sampling.details import DetailTensors
from tgis_server.engines.sampling.seen import SeenTokens
from tgis_server.engines.sampling.staging import Staging
from tgis_server.wire.messages import SamplingParams, TokenIds


class Sampler:
    """Samples on one device.

    ``start`` and ``stop`` mark the beginning and the end of a sequence in a slot. Each step calls ``sample`` and, once
    nothing more can fail, ``note``: a step that runs out of memory before ``note`` can be repeated.
    """

    def __init__(self, vocab_size: int, staging: Staging, ops: SamplingOps) -> None:
        self._ops = ops
        self._staging = staging
        self._seen = SeenTokens(vocab_size, staging)

    def start(self, slot: int, token_ids: TokenIds, params: SamplingParams) -> None:
        """Start a sequence in a slot. ``token_ids``: its prompt and, after a preemption, its output so far."""
        self._seen.stop(slot)
        if params.repetition_penalty != 1.0:
            self._seen.start(slot, token_ids)

    def stop(self, slot: int) -> None:
        self._seen.stop(slot)

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow], masks: Mapping[int, bytes] | None = None) -> Sampled:
        """Choose one token per row; see :class:`SamplingOps`."""
        seen = self._seen_rows(rows)
        sampled = self._ops.sample(logits, rows, masks or {}, seen)
        if seen is None:
            return sampled
        seen_ids = sampled.ids.index_select(0, self._staging.put(seen.rows, torch.int64))
        return replace(sampled, seen_lines=seen.lines, seen_ids=seen_ids)

    def describe(self, logits: Tensor, ids: Tensor, top_n: int) -> tuple[Tensor, DetailTensors]:
        """Describe tokens that are already known; see :class:`SamplingOps`."""
        return self._ops.describe(logits, ids, top_n)

    def note(self, sampled: Sampled) -> None:
        """Add the tokens of ``sampled`` to their sequences."""
        if sampled.seen_lines is not None and sampled.seen_ids is not None:
            self._seen.add(sampled.seen_lines, sampled.seen_ids)

    def _seen_rows(self, rows: Sequence[SamplingRow]) -> SeenRows | None:
        penalized = [i for i, row in enumerate(rows) if row.params.repetition_penalty != 1.0]
        if not penalized:
            return None
        lines = self._seen.lines([rows[i].slot for i in penalized])
        return SeenRows(penalized, self._seen.flags, lines)
