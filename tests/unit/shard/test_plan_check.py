"""A plan that a rank cannot apply is refused with the name of the field."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tgis_server.engines.api import Capacity
from tgis_server.errors import GroupFailed
from tgis_server.shard.plan_check import PlanCheck
from tgis_server.wire.messages import Activation, NewSequence, SamplingParams, StepPlan, Wanted, pack_ids

NEW = NewSequence(0, pack_ids([5, 6, 7]), 2, 0, SamplingParams(), Wanted())
FIRST = StepPlan(1, [NEW], [0], [3], [[0, 3]], [True])
NEXT = StepPlan(2, [], [0], [1], [[]], [True])
ENCODER = replace(NEW, slot=2, encoder_ids=pack_ids([1]), cross_blocks=[2], num_encoder_tokens=1)


def started() -> PlanCheck:
    """A rank with four blocks, two places for adapters, and a sequence in slot 0."""
    check = PlanCheck(Capacity(num_blocks=4, block_size=4, max_sequence_length=16, max_adapters=2))
    check.apply(FIRST)
    return check


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        (replace(NEXT, slots=[1]), "slots names slot 1, which is empty"),
        (StepPlan(2, [], [0, 0], [1, 1], [[], []], [True] * 2), "slots names a slot twice"),
        (replace(NEXT, free=[0]), "slots names slot 0, which is empty"),
        (replace(NEXT, free=[1]), "free names slot 1, which is empty"),
        (replace(NEXT, num_tokens=[0]), "num_tokens has a row without tokens"),
        (replace(NEXT, num_tokens=[]), "num_tokens has 0 entries for 1 rows"),
        (replace(NEXT, sample=[True, False]), "sample has 2 entries for 1 rows"),
        (replace(NEXT, new_blocks=[[1, 4]]), "new_blocks names block 4, but the cache has 4"),
        (replace(NEXT, encode=[0]), "encode names slot 0, which has nothing to encode"),
        (replace(NEXT, encode=[3]), "encode names slot 3, which has nothing to encode"),
        (replace(NEXT, activate=[Activation(2, b"x")]), "activate.place is 2, but must be less than 2"),
        (replace(NEXT, new=[NEW]), "new.slot is 0, which is taken"),
        (replace(NEXT, new=[replace(NEW, slot=1, prompt_length=4)]), "new.prompt_length is 4, but there are 3 tokens"),
        (
            replace(NEXT, new=[replace(NEW, slot=1, num_cached_tokens=3)]),
            "new.num_cached_tokens is 3, but must be less than 3",
        ),
        (replace(NEXT, new=[replace(NEW, slot=1, adapter_place=1)]), "new.adapter_place is 1, which was never"),
        (replace(NEXT, new=[replace(NEW, slot=1, cross_blocks=[9])]), "new.cross_blocks names block 9, but the cache"),
        (replace(NEXT, new=[ENCODER], encode=[2]), "encode names slot 2, which has no row"),
        (
            replace(NEXT, new=[replace(ENCODER, num_encoder_tokens=5)]),
            "new.num_encoder_tokens is 5, but its cross blocks hold 4",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_plan_is_refused_with_the_field_and_problem(plan: StepPlan, problem: str) -> None:
    with pytest.raises(GroupFailed, match=f"The plan of step 2 cannot be applied: {problem}"):
        started().apply(plan)


def test_a_good_plan_passes() -> None:
    check = started()
    plan = StepPlan(2, [replace(ENCODER, adapter_place=1)], [2], [3], [[1]], [True], [0], [Activation(1, b"x")], [2])

    check.apply(plan)
    check.apply(replace(plan, free=[2]))  # a preempted sequence encodes again
