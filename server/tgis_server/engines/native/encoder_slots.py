"""A runner's state for each slot of an encoder: the text, and the blocks with the keys and values of its encoding.

A slot that shares another slot's encoding has blocks but no text. As in ``decoder_slots.py``, the host knows the
lengths, and the block tables are on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tgis_server.engines.native.models.decoder import StepInputs
from tgis_server.engines.native.models.encoder_decoder import EncoderDecoder, EncoderInputs
from tgis_server.engines.native.ops.api import AttentionPlan, Cache, Ops, StepRows
from tgis_server.engines.sampling.staging import Staging
from tgis_server.wire.messages import NewSequence, StepPlan, TokenIds


class EncoderSlots:
    """The encoder's texts of all running sequences."""

    def __init__(
        self, num_slots: int, max_blocks: int, model: EncoderDecoder, ops: Ops, cache: Cache, staging: Staging
    ) -> None:
        """``max_blocks``: the most that one text can have."""
        self._model = model
        self._ops = ops
        self._cache = cache
        self._staging = staging
        self._texts: dict[int, TokenIds] = {}  # by slot; empty where another slot's encoding is shared
        self._num_tokens = np.zeros(num_slots, dtype=np.int64)
        self._tables = torch.zeros(num_slots, max_blocks, dtype=torch.int64, device=staging.device)
        self._lengths = torch.zeros(num_slots, dtype=torch.int64, device=staging.device)

    def apply(self, plan: StepPlan) -> None:
        """Apply the plan's ``free`` and ``new``."""
        for slot in plan.free:
            self._texts.pop(slot, None)
        if not plan.new:
            return
        self._texts |= {new.slot: new.encoder_ids for new in plan.new}
        slots = np.array([new.slot for new in plan.new], dtype=np.int64)
        self._num_tokens[slots] = [new.num_encoder_tokens for new in plan.new]
        tables = np.stack([self._table(new) for new in plan.new])
        slots_t, lengths_t, tables_t = self._staging.put_all([slots, self._num_tokens[slots], tables])
        self._lengths.index_copy_(0, slots_t, lengths_t)
        self._tables.index_copy_(0, slots_t, tables_t)

    def _table(self, new: NewSequence) -> np.ndarray:
        max_blocks, num_blocks = self._tables.shape[1], len(new.cross_blocks)
        assert 0 < num_blocks <= max_blocks, (
            f"NewSequence.cross_blocks: {num_blocks} in slot {new.slot}, but 1 to {max_blocks} are allowed"
        )
        return np.array(new.cross_blocks + [0] * (max_blocks - num_blocks), dtype=np.int64)

    def encode(self, slots: Sequence[int]) -> None:
        """Run the encoder once for the texts of these slots."""
        texts = [self._texts[slot] for slot in slots]
        assert all(texts), f"StepPlan.encode: not all of the slots {slots} have encoder_ids"
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        row_slots, ids = np.array(slots, dtype=np.int64), np.concatenate(texts).astype(np.int64)
        positions = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        host = [ids, row_slots, np.repeat(row_slots, lengths), positions]
        ids_t, slots_t, token_slots_t, positions_t = self._staging.put_all(host)
        starts = np.zeros_like(lengths)
        rows = StepRows(starts, lengths, lengths, slots_t, token_slots_t, positions_t, self._tables)
        encoder = self._model.encoder
        attention = self._ops.plan_uncached_attention(lengths.tolist(), encoder.heads, encoder.modifiers.values())
        writes = self._ops.plan_attention(rows, self._cache, ())
        self._model.encode(EncoderInputs(StepInputs(ids_t, positions_t, attention), writes), self._cache)

    def plan_attention(self, rows: StepRows, slots: np.ndarray) -> AttentionPlan:
        """The plan with which a step's rows, in these slots, attend to their encodings."""
        cross = replace(rows, num_keys=self._num_tokens[slots], tables=self._tables, encoder_lengths=self._lengths)
        return self._ops.plan_attention(cross, self._cache, [self._model.cross_modifiers])
