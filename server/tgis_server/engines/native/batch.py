"""From a plan to tensors: per-slot state that lasts across steps, and what one step needs on the device.

Inside a step, rows of one token come first and chunks after them, so that each kind of attention works on one range
of tokens; results go back in the order of the plan. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.native.encoder_slots import EncoderSlots
from tgis_server.engines.native.models.decoder import StepInputs
from tgis_server.engines.native.ops import Ops
from tgis_server.engines.native.ops.api import AttentionModifiers, Cache, Rows
from tgis_server.engines.sampling.sampler import SamplingRow
from tgis_server.engines.sampling.staging import Staging
from tgis_server.wire.messages import SamplingParams, StepPlan, TokenIds, Wanted

FROM_DEVICE = -1  # stands for an input id that only the device knows: it may still be in flight


@dataclass(slots=True)
class SlotState:
    """What is known on the host about the sequence in a slot."""

    token_ids: TokenIds  # prompt; after a preemption prompt + generated. Later tokens are known to the device only.
    prompt_length: int
    num_computed: int
    sampling: SamplingParams
    seed: int
    wanted: Wanted
    end_ids: frozenset[int]
    num_blocks: int = 0


class Slots:
    """The sequences under way: on the host what plans need, on the device what the forward pass needs.

    Tensors change by what a plan says, so that a step costs the host the same however long its rows are.
    """

    def __init__(self, num_slots: int, max_blocks: int, staging: Staging, rope_border: int | None = None) -> None:
        """``max_blocks`` is the most of one sequence."""
        self._staging = staging
        self._rope_border = rope_border
        self._states: dict[int, SlotState] = {}
        self.tables = torch.zeros(num_slots, max_blocks, dtype=torch.int64, device=staging.device)
        self.lengths = torch.zeros(num_slots, dtype=torch.int64, device=staging.device)  # computed tokens
        self.newest_ids = torch.zeros_like(self.lengths)
        self._rope_starts = torch.zeros_like(self.lengths)

    def states(self, slots: Iterable[int]) -> list[SlotState]:
        return list(map(self._states.__getitem__, slots))

    def apply(self, plan: StepPlan) -> None:
        """Change what the plan changes: ``free``, ``new`` and ``new_blocks``."""
        for slot in plan.free:
            self._states.pop(slot, None)
        for new in plan.new:
            assert new.slot < len(self.lengths), f"StepPlan.new: slot {new.slot}, but there are {len(self.lengths)}"
            self._states[new.slot] = SlotState(
                new.token_ids,
                new.prompt_length,
                new.num_cached_tokens,
                new.sampling,
                new.seed,
                new.wanted,
                new.end_ids,
            )
        if plan.new:
            border = self._rope_border or 0
            changed = [(new.slot, new.num_cached_tokens, border if new.is_rope_long else 0) for new in plan.new]
            slots, lengths, rope_starts = self._staging.put_all(list(np.array(changed, dtype=np.int64).T))
            self.lengths.index_copy_(0, slots, lengths)
            self._rope_starts.index_copy_(0, slots, rope_starts)
        self._append_blocks(plan)

    def _append_blocks(self, plan: StepPlan) -> None:
        max_blocks = self.tables.shape[1]
        places: list[int] = []
        ids: list[int] = []
        for slot, blocks in zip(plan.slots, plan.new_blocks, strict=True):
            if blocks:
                state = self._states[slot]
                end = state.num_blocks + len(blocks)
                assert end <= max_blocks, f"StepPlan.new_blocks: {end} blocks in slot {slot}, at most {max_blocks} fit"
                places += range(slot * max_blocks + state.num_blocks, slot * max_blocks + end)
                ids += blocks
                state.num_blocks = end
        if ids:
            on_device = self._staging.put_all([np.array(places, dtype=np.int64), np.array(ids, dtype=np.int64)])
            self.tables.view(-1).index_copy_(0, *on_device)

    def rope_rows(self, token_slots: Tensor, positions: Tensor) -> Tensor:
        """Rows of the rope table, per token."""
        if self._rope_border is None:
            return positions
        return positions + self._rope_starts.index_select(0, token_slots)

    def advance(self, batch: Batch) -> None:
        """The batch's tokens are computed."""
        for state, num_tokens in zip(self.states(batch.plan.slots), batch.plan.num_tokens, strict=True):
            state.num_computed += num_tokens
        self.lengths.index_add_(0, batch.slots, batch.num_tokens)


@dataclass(frozen=True, slots=True)
class PromptPart:
    """The positions of one row whose following prompt token a request wants facts about."""

    row: int  # of the plan
    first_token: int  # index into the step's tokens
    following_ids: TokenIds  # of positions from there on
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Batch:
    """One step, ready to run."""

    plan: StepPlan
    inputs: StepInputs
    slots: Tensor  # (rows,) int64, in the order of the step's tokens, as is num_tokens
    num_tokens: Tensor
    sample_tokens: Tensor  # (sampling rows,) int64: index of each one's last token
    sample_slots: Tensor  # (sampling rows,) int64
    sample_rows: list[int]  # rows of the plan
    sampling: list[SamplingRow]
    prompt_parts: list[PromptPart]
    last_tokens: np.ndarray  # (rows,) int64, in the order of the plan

    def token_ranges(self) -> list[tuple[int, int, int]]:
        """Rows of the plan, each with its first token and the end of its tokens."""
        ends = (self.last_tokens + 1).tolist()
        return [(row, end - self.plan.num_tokens[row], end) for row, end in enumerate(ends)]


@dataclass(frozen=True, slots=True)
class BatchBuilder:
    """Builds the tensors of steps."""

    slots: Slots
    ops: Ops
    cache: Cache
    modifiers: Sequence[AttentionModifiers]  # of the model's layers
    staging: Staging
    encoders: EncoderSlots | None = None  # where the rows attend to encodings too

    def build(self, plan: StepPlan) -> Batch:
        """The plan's state changes have been applied; computed positions are not advanced."""
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
        plan_slots = np.array(plan.slots, dtype=np.int64)
        row_slots = plan_slots[order]

        # 2. Rows that sample
        ends = np.cumsum(num_tokens)
        last_tokens = np.empty_like(ends)
        last_tokens[order] = ends - 1
        sample_rows = np.flatnonzero(plan.sample)

        # 3. To the device
        chunk_ids = [_chunk_ids(states[row], plan.num_tokens[row]) for row in chunks]
        ids = np.concatenate([_single_ids([states[row] for row in singles]), *chunk_ids])
        offsets = np.arange(ends[-1]) - np.repeat(ends - num_tokens, num_tokens)
        token_slots = np.repeat(row_slots, num_tokens)
        sample_tokens, sample_slots = last_tokens[sample_rows], plan_slots[sample_rows]
        ids_t, slots_t, token_slots_t, offsets_t, num_tokens_t, sample_tokens_t, sample_slots_t = self.staging.put_all(
            [ids, row_slots, token_slots, offsets, num_tokens, sample_tokens, sample_slots]
        )
        if (ids[:num_singles] == FROM_DEVICE).any():
            known = ids_t[:num_singles]
            newest = slots.newest_ids.index_select(0, slots_t[:num_singles])
            ids_t[:num_singles] = torch.where(known == FROM_DEVICE, newest, known)

        # 4. Where the tokens stand, and what they attend to
        positions = slots.lengths.index_select(0, token_slots_t).add_(offsets_t)
        rows = Rows(
            starts, num_tokens, starts + num_tokens, slots_t, token_slots_t, positions, slots.tables, slots.lengths
        )
        attention = self.ops.plan(rows, self.cache, self.modifiers)
        cross_attention = self.encoders.plan(rows, row_slots) if self.encoders else None
        return Batch(
            plan,
            StepInputs(ids_t, slots.rope_rows(token_slots_t, positions), attention, cross_attention),
            slots_t,
            num_tokens_t,
            sample_tokens_t,
            sample_slots_t,
            sample_rows.tolist(),
            [_sampling_row(plan.slots[row], states[row], plan.num_tokens[row]) for row in sample_rows],
            _prompt_parts(plan, states, last_tokens),
            last_tokens,
        )


def _single_ids(states: list[SlotState]) -> np.ndarray:
    ids = [
        state.token_ids[state.num_computed] if state.num_computed < len(state.token_ids) else FROM_DEVICE
        for state in states
    ]
    return np.array(ids, dtype=np.int64)


def _chunk_ids(state: SlotState, num_tokens: int) -> np.ndarray:
    known = state.token_ids[state.num_computed : state.num_computed + num_tokens]
    assert len(known) == num_tokens, (
        f"StepPlan.num_tokens: a chunk of {num_tokens} tokens from {state.num_computed} on goes beyond the "
        f"{len(state.token_ids)} tokens that are known"
    )
    return np.asarray(known, dtype=np.int64)


def _sampling_row(slot: int, state: SlotState, num_tokens: int) -> SamplingRow:
    index = state.num_computed + num_tokens - state.prompt_length
    return SamplingRow(slot, index, state.sampling, state.wanted, state.seed, state.end_ids)


def _prompt_parts(plan: StepPlan, states: list[SlotState], last_tokens: np.ndarray) -> list[PromptPart]:
    """Of each row that wants facts about its prompt: the computed positions p with p + 1 inside the prompt."""
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
