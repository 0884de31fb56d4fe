"""A runner's state for each slot of the decoder: on the host to build batches, on the device for the forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tgis_server.engines.sampling.staging import Staging
from tgis_server.wire.messages import SamplingParams, StepPlan, TokenIds, Wanted


@dataclass(slots=True)
class SlotState:
    """What the host knows about the sequence in a slot."""

    token_ids: TokenIds  # prompt; after a preemption, also the output until then. Only the device knows later ids.
    prompt_length: int
    num_computed: int
    sampling: SamplingParams
    seed: int
    wanted: Wanted
    end_ids: frozenset[int]
    num_blocks: int = 0


class DecoderSlots:
    """The state of all running sequences, kept from step to step.

    A plan changes only some elements of the tensors, so the host's work does not grow with the rows' lengths.
    """

    def __init__(self, num_slots: int, max_blocks: int, staging: Staging, rope_border: int | None = None) -> None:
        """``max_blocks``: the most that one sequence can have. ``rope_border``: see ``RunnerCaps``."""
        self._staging = staging
        self._rope_border = rope_border
        self._states: dict[int, SlotState] = {}
        self.tables = torch.zeros(num_slots, max_blocks, dtype=torch.int64, device=staging.device)  # block ids
        self.newest_ids = torch.zeros(num_slots, dtype=torch.int64, device=staging.device)
        self._rope_starts = torch.zeros_like(self.newest_ids)

    def states(self, slots: Iterable[int]) -> list[SlotState]:
        return list(map(self._states.__getitem__, slots))

    def apply(self, plan: StepPlan) -> None:
        """Apply the plan's ``free``, ``new`` and ``new_blocks``."""
        for slot in plan.free:
            self._states.pop(slot, None)
        for new in plan.new:
            assert new.slot < len(self.tables), f"StepPlan.new: slot {new.slot}, but only {len(self.tables)} exist"
            self._states[new.slot] = SlotState(
                new.token_ids,
                new.prompt_length,
                new.num_cached_tokens,
                new.sampling,
                new.seed,
                new.wanted,
                new.end_ids,
            )
        if plan.new and self._rope_border is not None:
            border = self._rope_border
            changed = [(new.slot, border if new.is_rope_long else 0) for new in plan.new]
            self._rope_starts.index_copy_(0, *self._staging.put_all(list(np.array(changed, dtype=np.int64).T)))
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

    def position_rows(self, token_slots: Tensor, positions: Tensor) -> Tensor:
        """(T,) int64: each token's row in the rope table or the learned positions."""
        if self._rope_border is None:
            return positions
        return positions + self._rope_starts.index_select(0, token_slots)

    def advance(self, plan: StepPlan) -> None:
        """Count the plan's tokens as computed."""
        for state, count in zip(self.states(plan.slots), plan.num_tokens, strict=True):
            state.num_computed += count
