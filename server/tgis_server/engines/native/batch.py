"""Turns the plan of a step into tensors on the device, without waiting for the device.

Within a step, rows of one token precede chunks, so that each kind of attention works on one range of tokens. Results
are returned in the order of the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.native.decoder_slots import DecoderSlots, SlotState
from tgis_server.engines.native.encoder_slots import EncoderSlots
from tgis_server.engines.native.models.decoder import StepInputs
from tgis_server.engines.native.ops.api import AttentionModifiers, Cache, Ops, StepRows
from tgis_server.engines.sampling.api import SamplingRow
from tgis_server.engines.sampling.staging import Staging
from tgis_server.wire.messages import StepPlan, TokenIds, Wanted

FROM_DEVICE = -1  # placeholder for an input id that only the device knows


@dataclass(frozen=True, slots=True)
class PromptPart:
    """Consecutive positions of one row; the prompt token after each of them needs details."""

    row: int  # of the plan
    first_token: int  # index into the step's tokens
    following_ids: TokenIds  # for each position, the token after it
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Batch:
    """One step, ready to run."""

    plan: StepPlan
    inputs: StepInputs
    sample_tokens: Tensor  # (sampling rows,) int64: index of each row's last token
    sample_slots: Tensor  # (sampling rows,) int64
    sample_rows: list[int]  # rows of the plan
    sampling: list[SamplingRow]
    prompt_parts: list[PromptPart]
    last_tokens: np.ndarray  # (rows,) int64, in the order of the plan

    def token_ranges(self) -> list[tuple[int, int, int]]:
        """(row of the plan, first token, end of its tokens) for each row."""
        ends = (self.last_tokens + 1).tolist()
        return [(row, end - self.plan.num_tokens[row], end) for row, end in enumerate(ends)]


@dataclass(frozen=True, slots=True)
class BatchBuilder:
    """Builds the batches of steps."""

    slots: DecoderSlots
    ops: Ops
    cache: Cache
    modifiers: Sequence[AttentionModifiers]  # of the model's layers
    staging: Staging
    encoders: EncoderSlots | None = None  # if the rows attend to encodings too

    def build(self, plan: StepPlan) -> Batch:
        """Build the batch of a plan whose state changes have been applied. Changes no state."""
        slots = self.slots
        # 1. Order: single tokens, then chunks
        states = slots.states(plan.slots)
        starts = np.array([state.num_computed for state in states], dtype=np.int64)
        num_tokens = np.array(plan.num_tokens, dtype=np.int64)
        singles, chunks = np.flatnonzero(num_tokens == 1), np.flatnonzero(num_tokens > 1)
        order_of_singles = self.ops.order_singles(starts[singles] + 1, self.cache)
        if order_of_singles is not None:
            singles = singles[order_of_singles]
        order = np.concatenate([singles, chunks])
        starts, num_tokens, num_singles = starts[order], num_tokens[order], len(singles)
        num_keys = starts + num_tokens
        plan_slots = np.array(plan.slots, dtype=np.int64)
        row_slots = plan_slots[order]

        # 2. Rows that sample
        ends = np.cumsum(num_tokens)
        last_tokens = np.empty_like(ends)
        last_tokens[order] = ends - 1
        sample_rows = np.flatnonzero(plan.sample)

        # 3. To the device
        known_ids = [_single_id(states[row]) for row in singles]
        chunk_ids = [_chunk_ids(states[row], plan.num_tokens[row]) for row in chunks]
        ids = np.concatenate([np.array(known_ids, dtype=np.int64), *chunk_ids])
        token_slots = np.repeat(row_slots, num_tokens)
        positions = np.arange(ends[-1]) + np.repeat(num_keys - ends, num_tokens)
        sample_tokens, sample_slots = last_tokens[sample_rows], plan_slots[sample_rows]
        ids_t, slots_t, token_slots_t, positions_t, sample_tokens_t, sample_slots_t = self.staging.put_all(
            [ids, row_slots, token_slots, positions, sample_tokens, sample_slots]
        )
        if FROM_DEVICE in known_ids:
            known = ids_t[:num_singles]
            newest = slots.newest_ids.index_select(0, slots_t[:num_singles])
            known.copy_(newest if max(known_ids) == FROM_DEVICE else torch.where(known == FROM_DEVICE, newest, known))

        # 4. Attention
        rows = StepRows(starts, num_tokens, num_keys, slots_t, token_slots_t, positions_t, slots.tables)
        attention = self.ops.plan_attention(rows, self.cache, self.modifiers)
        cross_attention = self.encoders.plan_attention(rows, row_slots) if self.encoders else None
        return Batch(
            plan,
            StepInputs(ids_t, slots.position_rows(token_slots_t, positions_t), attention, cross_attention),
            sample_tokens_t,
            sample_slots_t,
            sample_rows.tolist(),
            [_sampling_row(plan.slots[row], states[row], plan.num_tokens[row]) for row in sample_rows],
            _prompt_parts(plan, states, last_tokens),
            last_tokens,
        )


def _single_id(state: SlotState) -> int:
    return state.token_ids[state.num_computed] if state.num_computed < len(state.token_ids) else FROM_DEVICE


def _chunk_ids(state: SlotState, num_tokens: int) -> np.ndarray:
    known = state.token_ids[state.num_computed : state.num_computed + num_tokens]
    assert len(known) == num_tokens, (
        f"StepPlan.num_tokens: a chunk of {num_tokens} tokens from position {state.num_computed} exceeds the "
        f"{len(state.token_ids)} known tokens"
    )
    return np.asarray(known, dtype=np.int64)


def _sampling_row(slot: int, state: SlotState, num_tokens: int) -> SamplingRow:
    index = state.num_computed + num_tokens - state.prompt_length
    return SamplingRow(slot, index, state.sampling, state.wanted, state.seed, state.end_ids)


def _prompt_parts(plan: StepPlan, states: list[SlotState], last_tokens: np.ndarray) -> list[PromptPart]:
    """For each row that wants details about its prompt, the step's positions p with p + 1 inside the prompt."""
    parts = []
    for row, state in enumerate(states):
        if not (state.wanted.input_tokens and state.wanted.any):
            continue
        start, num_tokens = state.num_computed, plan.num_tokens[row]
        following = state.token_ids[start + 1 : min(start + num_tokens + 1, state.prompt_length)]
        if following:
            first_token = int(last_tokens[row]) - num_tokens + 1
            parts.append(PromptPart(row, first_token, following, state.wanted))
    return parts
