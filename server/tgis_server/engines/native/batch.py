"""From a plan to tensors: per-slot state that lasts across steps, and what one step needs on the device.

Inside a step, rows of one token come first and chunks after them, so that each kind of attention works on one range
of tokens; results go back in the order of the plan. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

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

    def __getitem__(self, slot: int) -> SlotState:
        return self._states[slot]

    def apply(self, plan: StepPlan) -> None:
        """Change what the plan changes: ``free``, ``new`` and ``new_blocks``."""
        for slot in plan.free:
            self._states.pop(slot, None)
        for new in plan.new:
            assert new.slot < len(self.lengths), f"StepPlan.new: slot {new.slot}, but there are {len(self.lengths)}"
            self._states[new.slot] = SlotState(
                new.token_ids, new.prompt_length, new.num_cached_tokens, new.sampling, new.seed, new.wanted
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
        for slot, num_tokens in zip(batch.plan.slots, batch.plan.num_tokens, strict=True):
            self._states[slot].num_computed += num_tokens
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
    sampling: list[SamplingRow] = field(default_factory=list)
    prompt_parts: list[PromptPart] = field(default_factory=list)
    rows: list[tuple[int, int, int]] = field(default_factory=list)  # of the plan, with its first token and their end


@dataclass(frozen=True, slots=True)
class BatchBuilder:
    """Builds the tensors of steps."""

    slots: Slots
    ops: Ops
    cache: Cache
    modifiers: Sequence[AttentionModifiers]  # of the model's layers
    staging: Staging

    def build(self, plan: StepPlan) -> Batch:
        """The plan's state changes have been applied; computed positions are not advanced."""
        slots = self.slots
        # 1. Order: single tokens, then chunks
        order = self._order(plan)
        num_singles = plan.num_tokens.count(1)
        row_slots = np.array([plan.slots[row] for row in order], dtype=np.int64)
        starts = np.array([slots[plan.slots[row]].num_computed for row in order], dtype=np.int64)
        num_tokens = np.array([plan.num_tokens[row] for row in order], dtype=np.int64)
        ends = np.cumsum(num_tokens)

        # 2. Rows that sample
        last_token_of_row = dict(zip(order, (ends - 1).tolist(), strict=True))
        sample_rows = [row for row in range(plan.num_rows) if plan.sample[row]]
        sample_tokens = np.array([last_token_of_row[row] for row in sample_rows], dtype=np.int64)
        sample_slots = np.array([plan.slots[row] for row in sample_rows], dtype=np.int64)

        # 3. To the device
        ids = np.concatenate([self._single_ids(plan, order[:num_singles]), *self._chunk_ids(plan, order[num_singles:])])
        offsets = np.arange(ends[-1]) - np.repeat(ends - num_tokens, num_tokens)
        host = [ids, row_slots, np.repeat(row_slots, num_tokens), offsets, num_tokens, sample_tokens, sample_slots]
        ids_t, slots_t, token_slots_t, offsets_t, num_tokens_t, sample_tokens_t, sample_slots_t = self.staging.put_all(
            host
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
        return Batch(
            plan,
            StepInputs(ids_t, slots.rope_rows(token_slots_t, positions), attention),
            slots_t,
            num_tokens_t,
            sample_tokens_t,
            sample_slots_t,
            sample_rows,
            [_sampling_row(plan, slots, row) for row in sample_rows],
            _prompt_parts(plan, slots, last_token_of_row),
            [(row, last + 1 - plan.num_tokens[row], last + 1) for row, last in last_token_of_row.items()],
        )

    def _order(self, plan: StepPlan) -> list[int]:
        """Rows of the plan in the order of the step's tokens."""
        singles = [row for row, num_tokens in enumerate(plan.num_tokens) if num_tokens == 1]
        chunks = [row for row, num_tokens in enumerate(plan.num_tokens) if num_tokens > 1]
        num_keys = np.array([self.slots[plan.slots[row]].num_computed + 1 for row in singles], dtype=np.int64)
        order = self.ops.order_singles(num_keys, self.cache)
        return (singles if order is None else [singles[i] for i in order]) + chunks

    def _single_ids(self, plan: StepPlan, rows: list[int]) -> np.ndarray:
        ids = []
        for state in (self.slots[plan.slots[row]] for row in rows):
            is_known = state.num_computed < len(state.token_ids)
            assert is_known or state.num_computed >= state.prompt_length, "a prompt is known to its end"
            ids.append(state.token_ids[state.num_computed] if is_known else FROM_DEVICE)
        return np.array(ids, dtype=np.int64)

    def _chunk_ids(self, plan: StepPlan, rows: list[int]) -> Iterator[np.ndarray]:
        for row in rows:
            state, num_tokens = self.slots[plan.slots[row]], plan.num_tokens[row]
            known = state.token_ids[state.num_computed : state.num_computed + num_tokens]
            assert len(known) == num_tokens, (
                f"StepPlan.num_tokens: a chunk of {num_tokens} tokens from {state.num_computed} on goes beyond the "
                f"{len(state.token_ids)} tokens that are known"
            )
            yield np.asarray(known, dtype=np.int64)


def _sampling_row(plan: StepPlan, slots: Slots, row: int) -> SamplingRow:
    slot = plan.slots[row]
    state = slots[slot]
    index = state.num_computed + plan.num_tokens[row] - state.prompt_length
    return SamplingRow(slot, index, state.sampling, state.wanted, state.seed)


def _prompt_parts(plan: StepPlan, slots: Slots, last_token_of_row: dict[int, int]) -> list[PromptPart]:
    """Of each row that wants facts about its prompt: the computed positions p with p + 1 inside the prompt."""
    parts = []
    for row, slot in enumerate(plan.slots):
        state = slots[slot]
        if not (state.wanted.input_tokens and state.wanted.any):
            continue
        start, num_tokens = state.num_computed, plan.num_tokens[row]
        following = state.token_ids[start + 1 : min(start + num_tokens + 1, state.prompt_length)]
        if following:
            first_token = last_token_of_row[row] - num_tokens + 1
            parts.append(PromptPart(row, first_token, following, state.wanted))
    return parts
