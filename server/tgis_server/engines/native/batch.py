"""From a plan to tensors: per-slot state that lasts across steps, and what one step needs on the device.

Inside a step, rows of one token come first and chunks after them, so that each kind of attention works on one range
of tokens; results go back in the order of the plan. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.native.attention_plan import AttentionPlanner, TokenRow
from tgis_server.engines.native.kv_cache import KvCache
from tgis_server.engines.native.models.decoder import StepInputs
from tgis_server.engines.sampling.sampler import SamplingRow
from tgis_server.engines.sampling.staging import Staging
from tgis_server.wire.messages import NewSequence, SamplingParams, StepPlan, TokenIds, Wanted

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
    rope_start: int  # row of the rope table that belongs to position 0
    num_blocks: int = 0


class Slots:
    """The sequences under way, their block tables, and on the device each one's newest token."""

    def __init__(self, num_slots: int, staging: Staging, rope_border: int | None = None) -> None:
        self._staging = staging
        self._rope_border = rope_border or 0
        self._states: dict[int, SlotState] = {}
        self._tables = np.zeros((num_slots, 16), dtype=np.int64)
        self.newest_ids = torch.zeros(num_slots, dtype=torch.int64, device=staging.device)

    def __getitem__(self, slot: int) -> SlotState:
        return self._states[slot]

    def add(self, new: NewSequence) -> None:
        if new.slot >= len(self._tables):
            self._grow(new.slot + 1)
        self._states[new.slot] = SlotState(
            new.token_ids,
            new.prompt_length,
            new.num_cached_tokens,
            new.sampling,
            new.seed,
            new.wanted,
            new.end_ids,
            rope_start=self._rope_border if new.is_rope_long else 0,
        )

    def remove(self, slot: int) -> None:
        self._states.pop(slot, None)

    def append_blocks(self, slot: int, blocks: list[int]) -> None:
        state = self._states[slot]
        end = state.num_blocks + len(blocks)
        while end > self._tables.shape[1]:
            self._tables = np.concatenate([self._tables, np.zeros_like(self._tables)], axis=1)
        self._tables[slot, state.num_blocks : end] = blocks
        state.num_blocks = end

    def table(self, slot: int) -> np.ndarray:
        """(blocks,) int64, in the order of the sequence; longer than what is in use."""
        row: np.ndarray = self._tables[slot]
        return row

    def _grow(self, num_slots: int) -> None:
        more = max(num_slots, 2 * len(self._tables)) - len(self._tables)
        self._tables = np.concatenate([self._tables, np.zeros((more, self._tables.shape[1]), dtype=np.int64)])
        self.newest_ids = torch.cat([self.newest_ids, self.newest_ids.new_zeros(more)])


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

    inputs: StepInputs
    sample_tokens: Tensor  # (sampling rows,) int64: index of each one's last token
    sample_slots: Tensor  # (sampling rows,) int64
    sample_rows: list[int]  # rows of the plan
    sampling: list[SamplingRow] = field(default_factory=list)
    prompt_parts: list[PromptPart] = field(default_factory=list)
    rows: list[tuple[int, int, int]] = field(default_factory=list)  # of the plan, with its first token and their end


def build_batch(plan: StepPlan, slots: Slots, cache: KvCache, planner: AttentionPlanner, staging: Staging) -> Batch:
    """Build the step's tensors. The plan's state changes have been applied; computed positions are not advanced."""
    # 1. Order: single tokens, then chunks
    singles = [row for row in range(plan.num_rows) if plan.num_tokens[row] == 1]
    chunks = [row for row in range(plan.num_rows) if plan.num_tokens[row] > 1]
    token_rows: list[TokenRow] = []
    for row in planner.order_singles(singles, [slots[plan.slots[row]].num_computed for row in singles]) + chunks:
        slot = plan.slots[row]
        token_rows.append(TokenRow(row, slots[slot].num_computed, plan.num_tokens[row], slots.table(slot)))

    # 2. Ids, positions and places in the cache, per token
    ids = np.concatenate([_input_ids(slots[plan.slots[r.row]], r.start, r.num_tokens) for r in token_rows])
    positions = np.concatenate([np.arange(r.start, r.start + r.num_tokens) for r in token_rows])
    rope_starts = [slots[plan.slots[r.row]].rope_start for r in token_rows]
    rope_rows = (
        positions + np.repeat(rope_starts, [r.num_tokens for r in token_rows]) if any(rope_starts) else positions
    )
    blocks = np.concatenate(
        [r.table[np.arange(r.start, r.start + r.num_tokens) // cache.block_size] for r in token_rows]
    )
    places = blocks * (2 * cache.num_kv_heads * cache.block_size) + positions % cache.block_size

    # 3. What their former owners left in blocks that are begun and not filled would lie behind the row's keys
    size = cache.block_size
    cache.clear(
        int(r.table[r.num_keys // size])
        for r in token_rows
        if r.num_keys % size and r.start <= r.num_keys - r.num_keys % size
    )

    # 4. Rows that sample
    last_token_of_row = dict(
        zip((r.row for r in token_rows), np.cumsum([r.num_tokens for r in token_rows]) - 1, strict=True)
    )
    sample_rows = [row for row in range(plan.num_rows) if plan.sample[row]]
    sample_tokens = np.array([last_token_of_row[row] for row in sample_rows], dtype=np.int64)
    sample_slots = np.array([plan.slots[row] for row in sample_rows], dtype=np.int64)
    single_slots = np.array([plan.slots[r.row] for r in token_rows[: len(singles)]], dtype=np.int64)

    # 5. To the device
    on_device = staging.put_all([ids, rope_rows, places, sample_tokens, sample_slots, single_slots])
    ids_t, rope_rows_t, places_t, sample_tokens_t, sample_slots_t, single_slots_t = on_device
    if (ids == FROM_DEVICE).any():
        known = ids_t[: len(singles)]
        newest = slots.newest_ids.index_select(0, single_slots_t)
        ids_t[: len(singles)] = torch.where(known == FROM_DEVICE, newest, known)
    inputs = StepInputs(ids_t, rope_rows_t, planner.cache_rows(places_t), planner.plan(token_rows, len(singles)))
    return Batch(
        inputs,
        sample_tokens_t,
        sample_slots_t,
        sample_rows,
        [_sampling_row(plan, slots, row) for row in sample_rows],
        _prompt_parts(plan, slots, last_token_of_row),
        [(row, int(last) + 1 - plan.num_tokens[row], int(last) + 1) for row, last in last_token_of_row.items()],
    )


def _input_ids(state: SlotState, start: int, num_tokens: int) -> Sequence[int]:
    known = state.token_ids[start : start + num_tokens]
    assert len(known) == num_tokens or (num_tokens == 1 and start >= state.prompt_length), (
        f"a chunk of {num_tokens} tokens from {start} on goes beyond the {len(state.token_ids)} tokens that are known"
    )
    return known or [FROM_DEVICE]


def _sampling_row(plan: StepPlan, slots: Slots, row: int) -> SamplingRow:
    slot = plan.slots[row]
    state = slots[slot]
    index = state.num_computed + plan.num_tokens[row] - state.prompt_length
    return SamplingRow(slot, index, state.sampling, state.wanted, state.seed, state.end_ids)


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
            first_token = int(last_token_of_row[row]) - num_tokens + 1
            parts.append(PromptPart(row, first_token, following, state.wanted))
    return parts
