"""Checks that a rank can apply a plan, before anything is computed; errors name the field at fault.

A wrong plan would overwrite other sequences' blocks, or end in a device error that explains nothing.
"""

from __future__ import annotations

from typing import NoReturn

from tgis_server import failures
from tgis_server.engines.api import Capacity
from tgis_server.wire.messages import NO_ADAPTER, NewSequence, StepPlan


class PlanCheck:
    """Tracks the plans of one rank. Work that grows with the batch is left to built-in functions, for speed."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self._slots: set[int] = set()
        self._encoding: set[int] = set()  # slots whose encoder may run
        self._places: set[int] = set()  # activated places of adapters

    def apply(self, plan: StepPlan) -> None:
        """Check a plan and apply its changes, in the order of ``StepPlan``.

        Raises:
            GroupFailed: the plan cannot be applied.
        """
        self._free(plan)
        for activation in plan.activate:
            if activation.place not in range(self._capacity.max_adapters):
                num_places = self._capacity.max_adapters
                refuse(plan, "activate.place", f"is {activation.place}, but must be less than {num_places}")
            self._places.add(activation.place)
        for new in plan.new:
            self._add(plan, new)
        self._check_rows(plan)
        if not self._encoding.issuperset(plan.encode):
            refuse(
                plan, "encode", f"names slot {first_unknown(plan.encode, self._encoding)}, which has nothing to encode"
            )
        if without_row := set(plan.encode).difference(plan.slots):
            refuse(plan, "encode", f"names slot {min(without_row)}, which has no row")
        self._encoding.difference_update(plan.encode)

    def _free(self, plan: StepPlan) -> None:
        if not self._slots.issuperset(plan.free):
            refuse(plan, "free", f"names slot {first_unknown(plan.free, self._slots)}, which is empty")
        self._slots.difference_update(plan.free)
        self._encoding.difference_update(plan.free)

    def _add(self, plan: StepPlan, new: NewSequence) -> None:
        num_tokens = len(new.token_ids)
        if new.slot in self._slots:
            refuse(plan, "new.slot", f"is {new.slot}, which is taken")
        if not 1 <= new.prompt_length <= num_tokens:
            refuse(plan, "new.prompt_length", f"is {new.prompt_length}, but there are {num_tokens} tokens")
        if new.num_cached_tokens not in range(num_tokens):
            refuse(plan, "new.num_cached_tokens", f"is {new.num_cached_tokens}, but must be less than {num_tokens}")
        if new.adapter_place != NO_ADAPTER and new.adapter_place not in self._places:
            refuse(plan, "new.adapter_place", f"is {new.adapter_place}, which was never activated")
        if max(new.cross_blocks, default=-1) >= self._capacity.num_blocks:
            refuse(plan, "new.cross_blocks", self._beyond_the_cache(max(new.cross_blocks)))
        held = len(new.cross_blocks) * self._capacity.block_size
        if new.cross_blocks and new.num_encoder_tokens > held:
            refuse(
                plan,
                "new.num_encoder_tokens",
                f"is {new.num_encoder_tokens}, but its cross blocks hold {held}",
            )
        self._slots.add(new.slot)
        if new.encoder_ids:
            self._encoding.add(new.slot)

    def _check_rows(self, plan: StepPlan) -> None:
        num_rows = len(plan.slots)
        for name in ("num_tokens", "new_blocks", "sample"):
            if len(getattr(plan, name)) != num_rows:
                refuse(plan, name, f"has {len(getattr(plan, name))} entries for {num_rows} rows")
        if not num_rows:
            return
        if not self._slots.issuperset(plan.slots):
            refuse(plan, "slots", f"names slot {first_unknown(plan.slots, self._slots)}, which is empty")
        if len(set(plan.slots)) != num_rows:
            refuse(plan, "slots", "names a slot twice")
        if min(plan.num_tokens) < 1:
            refuse(plan, "num_tokens", "has a row without tokens")
        if (block := max(map(max, filter(None, plan.new_blocks)), default=-1)) >= self._capacity.num_blocks:
            refuse(plan, "new_blocks", self._beyond_the_cache(block))

    def _beyond_the_cache(self, block: int) -> str:
        return f"names block {block}, but the cache has {self._capacity.num_blocks} blocks"


def first_unknown(slots: list[int], known: set[int]) -> int:
    return next(slot for slot in slots if slot not in known)


def refuse(plan: StepPlan, field: str, problem: str) -> NoReturn:
    raise failures.MESSAGE_UNUSABLE.error(message=f"The plan of step {plan.step}", field=field, problem=problem)
